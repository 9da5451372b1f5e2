"""Choosing the next tokens of many sessions from their logits.

Order and meaning of the steps are those of transformers' processors and warpers, where it has them:

    logits
      ─► logit bias              added
      ─► repetition penalty      over prompt and output: positive logits divided, negative multiplied
      ─► frequency, presence     over output tokens only (the OpenAI API's definition; transformers has neither)
      ─► masks                   bad words, n-grams, ends before `min_tokens`: see `masks`
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
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from broker_pipeline.errors import (
    ConstantLogitsError,
    KVPositionError,
    NonFiniteLogitsError,
    NothingLeftError,
    StageError,
)
from broker_pipeline.messages.sampling import SamplingSettings, TokenLogprob
from stages.compute.grammar.session_grammar import SessionGrammar
from stages.compute.grammar.token_bits import without
from stages.compute.sampling.adjustments import Adjustment, AdjustmentTables, adjust_logit_rows
from stages.compute.sampling.launch import NOTHING_LEFT, SamplingResults, launch_logit_rows
from stages.compute.sampling.logit_scan import CONSTANT, NOT_FINITE, LogitScan
from stages.compute.sampling.masks import TokenMask
from stages.compute.sampling.penalties import TokenHistory
from stages.compute.sampling.plan import LogitRowRequest
from stages.compute.sampling.transfer import send

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15

LEAST_LOGPROB = -9999.0
"""Stands for less: what a mask leaves of a token is below any number that readers of JSON expect."""


class SessionSampler:
    """One session's settings, and of its tokens what these depend on."""

    def __init__(
        self,
        settings: SamplingSettings,
        tokens: Sequence[int] = (),
        num_prompt_tokens: int = 0,
        grammar: SessionGrammar | None = None,
    ) -> None:
        """Begin with all `tokens` of the session, prompt first; settings that need no history do without.

        `grammar` is where its answer is by now, if its settings have one.
        """
        self._needs_history = settings.needs_history
        tokens = tokens if self._needs_history else ()
        prompt, generated = tokens[:num_prompt_tokens], tokens[num_prompt_tokens:]
        self.settings = settings
        self._num_tokens = len(tokens)
        self._history = TokenHistory(prompt, generated) if settings.has_penalties else TokenHistory()
        self._mask = TokenMask(settings, tokens, num_prompt_tokens)
        self._is_always_adjusted = settings.has_penalties or bool(settings.logit_bias)
        self._grammar = grammar
        self._is_ever_adjusted = self._is_always_adjusted or self._mask.is_needed or grammar is not None
        self._is_plain = settings.temperature == 0 and settings.logprobs is None and not self._is_ever_adjusted
        self._biases = np.array(list(settings.logit_bias.items()), dtype=np.float64).reshape(-1, 2).T

    def require_history(self, position: int) -> None:
        """Check that the history reaches up to the token to be sampled."""
        if self._needs_history and self._num_tokens != position:
            raise KVPositionError(
                f"penalties and masks need all {position} tokens before this one; the history has {self._num_tokens}"
            )

    def adjustment(self, position: int) -> Adjustment | None:
        """Return what is done to the logits of the token at index `position`; None where they stay as they are.

        Where masks would leave nothing of what a grammar allows, the grammar wins. Waits for the grammar.

        Raises:
            GrammarError: the grammar has failed.
        """
        if not self._is_ever_adjusted:
            return None
        masked = self._mask.ids(position)
        if self._grammar is not None:
            if (allowed := self._grammar.allowed()) is not None:
                return Adjustment(self.settings, self._biases, self._history, set(), without(allowed, masked))
            masked |= self._grammar.end_token_ids
        is_adjusted = masked or self._is_always_adjusted
        return Adjustment(self.settings, self._biases, self._history, masked) if is_adjusted else None

    def request(self, place: int, position: int) -> LogitRowRequest | None:
        """Return what is wanted of the logit row at `place`; None for nothing but its most likely token."""
        if self._is_plain:
            return None
        settings, adjustment = self.settings, self.adjustment(position)
        if settings.temperature == 0 and settings.logprobs is None and adjustment is None:
            return None
        return LogitRowRequest(place, settings, uniform(settings.seed, position), adjustment)

    def record(self, token_id: int) -> None:
        """Add a sampled token."""
        if not self._needs_history:
            return
        self._num_tokens += 1
        self._mask.record(token_id)
        if self._grammar is not None:
            self._grammar.record(token_id)
        if self.settings.has_penalties:
            self._history.record(token_id)


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
        if token_id == CONSTANT:
            return ConstantLogitsError(f"the logits for token {self.positions[place]} are all the same number")
        if place in self.refusals:
            return self.refusals[place]
        if token_id == NOTHING_LEFT:
            return NothingLeftError(f"bad words, n-grams and `min_tokens` leave no token {self.positions[place]}")
        sampler = self.samplers[place]
        sampler.record(token_id)
        return Choice(token_id) if report is None else _reported(token_id, report, sampler.settings.logprobs or 0)


def _reported(token_id: int, report: list[float], num_top: int) -> Choice:
    width = len(report) // 2
    best = zip(report[1 + width :], report[1 : 1 + width], strict=True)
    top = [TokenLogprob(token_id=int(top_id), logprob=max(logprob, LEAST_LOGPROB)) for top_id, logprob in best]
    return Choice(token_id, max(report[0], LEAST_LOGPROB), tuple(top[:num_top]))


def launch_sampling(
    logits: Tensor, samplers: Sequence[SessionSampler], positions: Sequence[int], scan: LogitScan
) -> PendingChoices:
    """Queue the work for one token of each logit row of `[r, V]` in bf16 or fp32, and do not wait for the device.

    Logit row i belongs to `samplers[i]` and index `positions[i]`; `scan` is `scan_logits(logits)`, by whatever kernel.
    Masks of grammars that are not there yet are waited for; the device works on what was queued before.
    Greedy ones without adjustments and log-probabilities take what the scan says; the others are worked on in groups.
    What becomes of one depends on no other. `logits` may be overwritten by work queued after this call.
    """
    requests, refusals = [], {}
    for place, (sampler, position) in enumerate(zip(samplers, positions, strict=True)):
        try:
            sampler.require_history(position)
            request = sampler.request(place, position)
        except StageError as error:
            refusals[place] = error
        else:
            requests += [request] if request else []
    return PendingChoices(launch_logit_rows(logits, scan, requests), tuple(samplers), tuple(positions), refusals)


def adjusted(logits: Tensor, sampler: SessionSampler, position: int) -> Tensor:
    """Return a copy in fp32 of a logit row `[V]` as the session's token at index `position` is chosen from it."""
    copied = logits[None].to(torch.float32, copy=True)
    if adjustment := sampler.adjustment(position):
        adjust_logit_rows(copied, *send(AdjustmentTables.of([adjustment]).arrays, logits.device))
    return copied[0]
