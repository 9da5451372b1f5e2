"""What is asked of the sampler, and what it answers."""

from typing import Annotated

from msgspec import Meta

from broker_pipeline.messages.base import Count, PositiveCount, SessionRef, TokenId, WireStruct


class SamplingParams(WireStruct, frozen=True, kw_only=True):
    """Sampling as a user may ask for it; `None` means the model's own default (its generation_config)."""

    max_tokens: Annotated[int, Meta(ge=1, le=262_144)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """None: no log-probabilities. n: that of the chosen token and of the n most likely ones."""
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=16)] = ()
    ignore_eos: bool = False


class SamplingSettings(WireStruct, frozen=True, kw_only=True):
    """Sampling as a stage obeys it: every field decided. Greedy is `temperature == 0`; `top_k == 0` means no limit."""

    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None

    @property
    def needs_history(self) -> bool:
        """Whether the sampler must know which tokens the session holds already."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class TokenLogprob(WireStruct, frozen=True, kw_only=True):
    """Log-probability of one token (natural logarithm, after penalties, before temperature and filters)."""

    token_id: TokenId
    logprob: float


class SampledToken(WireStruct, frozen=True, kw_only=True):
    """The token that follows a segment. `position` is its index in the session: start + count of that segment."""

    session: SessionRef
    attempt: PositiveCount
    position: Count
    token_id: TokenId
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()
