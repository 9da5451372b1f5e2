"""Choosing the next token from logits.

Order and meaning of the steps are those of transformers' processors and warpers, where it has them:

    logits (fp32)
      ─► repetition penalty      over prompt and output: positive logits divided, negative multiplied
      ─► frequency, presence     over output tokens only (the OpenAI API's definition; transformers has neither)
      ═► log-probabilities are reported from here
      ─► temperature ─► top-k ─► top-p ─► min-p ─► draw          (temperature 0: argmax instead)

The draw needs one number in [0, 1): a hash of (seed, position), where position is the token's index in its session.
So a session that goes on elsewhere draws what it would have drawn here, whatever else is in the batch. The hash is
splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), applied to the seed and then to
the position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from broker_pipeline.errors import KVPositionError, NonFiniteLogitsError, StageError
from broker_pipeline.messages import SamplingSettings, TokenLogprob

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(slots=True)
class SessionSampler:
    """One session's settings and, where a penalty needs it, which tokens the session holds."""

    settings: SamplingSettings
    prompt: frozenset[int] = frozenset()
    output: Counter[int] = field(default_factory=Counter)
    num_tokens: int = 0

    @classmethod
    def opened(cls, settings: SamplingSettings, history: Sequence[int], num_prompt_tokens: int) -> SessionSampler:
        """`history` holds the prompt and what was generated before; it may be empty when no penalty is set."""
        output = Counter(history[num_prompt_tokens:])
        return cls(settings, frozenset(history[:num_prompt_tokens]), output, len(history))

    def require_history(self, position: int) -> None:
        """Checks that the history reaches up to the token to be sampled."""
        if self.settings.needs_history and self.num_tokens != position:
            raise KVPositionError(
                f"penalties need all {position} tokens before this one; the history has {self.num_tokens}"
            )

    def record(self, token_id: int) -> None:
        """Adds a sampled token."""
        if self.settings.needs_history:
            self.output[token_id] += 1
            self.num_tokens += 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token with its log-probability and those of the most likely tokens, if they were asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits that depends on nothing but seed and position."""
    return (_mix(_mix(seed & _MASK) + position * _GOLDEN) >> 11) / 2**53


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def sample(logits: Tensor, samplers: Sequence[SessionSampler], positions: Sequence[int]) -> list[Choice | StageError]:
    """One token for each row of `logits` `[r, V]`; row i belongs to `samplers[i]` and index `positions[i]`.

    A row that cannot be sampled gets an error in place of a choice, and the others theirs. Tokens are recorded in the
    samplers. Logits are used in fp32, whatever their dtype.
    """
    logits = logits.float()
    finite = torch.isfinite(logits).all(dim=-1).tolist()
    greedy = logits.argmax(dim=-1).tolist()
    outcomes: list[Choice | StageError] = []
    for row, (sampler, position) in enumerate(zip(samplers, positions, strict=True)):
        try:
            if not finite[row]:
                raise NonFiniteLogitsError(f"the logits for token {position} hold NaN or infinity")
            sampler.require_history(position)
            choice = _choose(logits[row], sampler, position, greedy[row])
        except StageError as error:
            outcomes.append(error)
        else:
            sampler.record(choice.token_id)
            outcomes.append(choice)
    return outcomes


def _choose(logits: Tensor, sampler: SessionSampler, position: int, greedy: int) -> Choice:
    settings = sampler.settings
    if settings.needs_history:
        logits = penalise(logits, sampler)
        greedy = int(logits.argmax())
    token_id = greedy if settings.temperature == 0 else _draw(logits, settings, position)
    if settings.logprobs is None:
        return Choice(token_id)
    return _with_logprobs(logits, token_id, settings.logprobs)


def penalise(logits: Tensor, sampler: SessionSampler) -> Tensor:
    """The row `[V]` with repetition, frequency and presence penalties applied."""
    settings, logits = sampler.settings, logits.clone()
    seen = _ids(sorted(sampler.prompt | sampler.output.keys()), logits)
    scores = logits[seen]
    scale = settings.repetition_penalty
    logits[seen] = torch.where(scores < 0, scores * scale, scores / scale)
    generated = _ids(list(sampler.output), logits)
    counts = torch.tensor(list(sampler.output.values()), dtype=logits.dtype, device=logits.device)
    logits[generated] -= settings.frequency_penalty * counts + settings.presence_penalty
    return logits


def _ids(ids: list[int], like: Tensor) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=like.device)


def candidates(logits: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Ids int64 and probabilities fp64 of the tokens that the filters leave, the most likely first.

    Tokens that tie with the last of the top k stay. Probabilities are not renormalised.
    """
    scores = logits.double() / settings.temperature
    ids = torch.arange(scores.shape[0], device=scores.device)
    if 0 < settings.top_k < scores.shape[0]:
        ids = (scores >= scores.topk(settings.top_k).values[-1]).nonzero()[:, 0]
    ordered, order = scores[ids].sort(descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities >= settings.min_p * probabilities[0]
    if settings.top_p < 1:
        kept &= before < settings.top_p
    return ids[order][kept], probabilities[kept]


def _draw(logits: Tensor, settings: SamplingSettings, position: int) -> int:
    """Inverse of the cumulative distribution at the uniform number of (seed, position)."""
    ids, probabilities = candidates(logits, settings)
    cumulative = probabilities.cumsum(dim=-1)
    target = uniform(settings.seed, position) * cumulative[-1]
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=ids.shape[0] - 1)
    return int(ids[place])


def _with_logprobs(logits: Tensor, token_id: int, num_top: int) -> Choice:
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(min(num_top, logprobs.shape[0]))
    top = tuple(
        TokenLogprob(token_id=top_id, logprob=logprob)
        for top_id, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )
    return Choice(token_id, float(logprobs[token_id]), top)
