"""Choosing the next tokens of many sessions from their logits.

Order and meaning of the steps are those of transformers' processors and warpers, where it has them:

    logits
      ─► repetition penalty      over prompt and output: positive logits divided, negative multiplied
      ─► frequency, presence     over output tokens only (the OpenAI API's definition; transformers has neither)
      ═► log-probabilities are reported from here
      ─► temperature ─► top-k ─► top-p ─► min-p ─► draw          (temperature 0: the most likely token instead)

The draw needs one number in [0, 1): a hash of (seed, position), where position is the token's index in its session.
So a session that goes on elsewhere draws what it would have drawn here, whatever else is in the batch. The hash is
splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), applied to the seed and then to
the position.

Nothing waits for the device between `launch_sampling` and `PendingChoices.collect`; see `launch` for the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from broker_pipeline.errors import KVPositionError, NonFiniteLogitsError, StageError
from broker_pipeline.messages.sampling import SamplingSettings, TokenLogprob
from stages.compute.sampling.launch import NOT_FINITE, SamplingResults, launch_logit_rows
from stages.compute.sampling.logit_scan import LogitScan
from stages.compute.sampling.penalties import TokenHistory, penalise_logit_rows, penalty_tables
from stages.compute.sampling.plan import LogitRowRequest
from stages.compute.sampling.transfer import send

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(slots=True)
class SessionSampler:
    """One session's settings and, where a penalty needs it, which tokens the session holds."""

    settings: SamplingSettings
    history: TokenHistory = field(default_factory=TokenHistory)

    @classmethod
    def opened(cls, settings: SamplingSettings, history: Sequence[int], num_prompt_tokens: int) -> SessionSampler:
        """Begin with a `history` of the prompt and what was generated before; without penalties it may be empty."""
        if not settings.needs_history:
            return cls(settings)
        return cls(settings, TokenHistory(history[:num_prompt_tokens], history[num_prompt_tokens:]))

    def require_history(self, position: int) -> None:
        """Check that the history reaches up to the token to be sampled."""
        if self.settings.needs_history and self.history.num_tokens != position:
            raise KVPositionError(
                f"penalties need all {position} tokens before this one; the history has {self.history.num_tokens}"
            )

    @property
    def needs_more_than_scan(self) -> bool:
        """Whether anything but the most likely token is wanted."""
        settings = self.settings
        return settings.temperature > 0 or settings.logprobs is not None or settings.needs_history

    def record(self, token_id: int) -> None:
        """Add a sampled token."""
        if self.settings.needs_history:
            self.history.record(token_id)


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token with its log-probability and those of the most likely tokens, if they were asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits that depends on nothing but seed and position."""
    return (_mix(_mix(seed & _MASK) + position * _GOLDEN) >> 11) / 2**53


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@dataclass(frozen=True, slots=True)
class PendingChoices:
    """Choices that the device is still working out; `collect` turns them into Python.

    `refusals` holds, by place, why some cannot be sampled whatever the device says.
    """

    results: SamplingResults
    samplers: tuple[SessionSampler, ...]
    positions: tuple[int, ...]
    refusals: dict[int, StageError]

    def collect(self) -> list[Choice | StageError]:
        """Return the choice from each logit row, or the error of one that cannot be sampled. To be called once.

        On a GPU an event recorded after the launch must have passed. Tokens are recorded in the samplers.
        """
        reports = self.results.reports()
        return [
            self._outcome(place, token_id, reports.get(place)) for place, token_id in enumerate(self.results.tokens())
        ]

    def _outcome(self, place: int, token_id: int, report: list[float] | None) -> Choice | StageError:
        if token_id == NOT_FINITE:
            return NonFiniteLogitsError(f"the logits for token {self.positions[place]} hold NaN or infinity")
        if place in self.refusals:
            return self.refusals[place]
        sampler = self.samplers[place]
        sampler.record(token_id)
        return Choice(token_id) if report is None else _reported(token_id, report, sampler.settings.logprobs or 0)


def _reported(token_id: int, report: list[float], num_top: int) -> Choice:
    width = len(report) // 2
    best = zip(report[1 + width :], report[1 : 1 + width], strict=True)
    top = [TokenLogprob(token_id=int(top_id), logprob=logprob) for top_id, logprob in best]
    return Choice(token_id, report[0], tuple(top[:num_top]))


def launch_sampling(
    logits: Tensor, samplers: Sequence[SessionSampler], positions: Sequence[int], scan: LogitScan
) -> PendingChoices:
    """Queue the work for one token of each logit row of `[r, V]` in bf16 or fp32, and wait for nothing.

    Logit row i belongs to `samplers[i]` and index `positions[i]`; `scan` is `scan_logits(logits)`, by whatever kernel.
    Greedy ones without penalties and log-probabilities take what the scan says; the others are worked on in groups.
    What becomes of one depends on no other. `logits` may be overwritten by work queued after this call.
    """
    requests, refusals = [], {}
    for place, (sampler, position) in enumerate(zip(samplers, positions, strict=True)):
        try:
            sampler.require_history(position)
        except StageError as error:
            refusals[place] = error
        else:
            if sampler.needs_more_than_scan:
                number = uniform(sampler.settings.seed, position)
                requests.append(LogitRowRequest(place, sampler.settings, number, sampler.history))
    return PendingChoices(launch_logit_rows(logits, scan, requests), tuple(samplers), tuple(positions), refusals)


def penalise(logits: Tensor, sampler: SessionSampler) -> Tensor:
    """Return a copy in fp32 of a logit row `[V]` with the session's penalties applied."""
    tables = send(penalty_tables([sampler.history], [sampler.settings]), logits.device)
    return penalise_logit_rows(logits[None].to(torch.float32, copy=True), *tables)[0]
