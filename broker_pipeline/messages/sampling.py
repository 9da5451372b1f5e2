"""What is asked of the sampler, and what it answers."""

from itertools import chain
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.messages.base import Count, PositiveCount, SessionRef, TokenId, WireReport, WireStruct
from broker_pipeline.messages.structured_outputs import GrammarSettings, StructuredOutputs

MAX_STOPS = 16
MAX_STOP_TOKENS = 256
MAX_BAD_WORDS = 256
MAX_BIASES = 1024

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopK = Annotated[int, Meta(ge=0, le=1_000_000)]
TopP = Annotated[float, Meta(gt=0, le=1)]
MinP = Annotated[float, Meta(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=10)]
OutputPenalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
NumTop = Annotated[int, Meta(ge=0, le=20)]
NumTokens = Annotated[int, Meta(ge=0, le=262_144)]
NgramSize = Annotated[int, Meta(ge=0, le=64)]
PatternSize = Annotated[int, Meta(ge=1, le=128)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
BadWord = Annotated[str, Meta(min_length=1, max_length=128)]


class RepetitionDetection(WireStruct, frozen=True, kw_only=True):
    """What counts as endless repetition: the output ends with one pattern of tokens, `min_count` times in a row."""

    max_pattern_size: PatternSize
    min_pattern_size: PatternSize | None = None
    """1 if nothing is said."""
    min_count: Annotated[int, Meta(ge=2, le=1000)]

    def __post_init__(self) -> None:
        if (self.min_pattern_size or 1) > self.max_pattern_size:
            raise ValueError("Invalid field `min_pattern_size`: larger than `max_pattern_size`")


class SamplingParams(WireStruct, frozen=True, kw_only=True):
    """Sampling as a user may ask for it; `None` means the model's own default (its generation_config)."""

    max_tokens: Annotated[int, Meta(ge=1, le=262_144)] | None = None
    min_tokens: NumTokens | None = None
    """No end of sequence, stop token, stop string or repetition ends the output before it has so many tokens."""
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: OutputPenalty | None = None
    frequency_penalty: OutputPenalty | None = None
    no_repeat_ngram_size: NgramSize | None = None
    """No sequence of so many tokens comes twice, the prompt included; 0 for no such limit."""
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=MAX_BIASES)] | None = None
    """Is added to the logits of these tokens."""
    bad_words: Annotated[tuple[BadWord, ...], Meta(max_length=MAX_BAD_WORDS)] | None = None
    """Words whose tokens never follow each other in the output, with and without a space before them."""
    seed: Seed | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    """How many outputs there are, one after the other: number i has the seed of the first and i."""
    logprobs: NumTop | None = None
    """None: no log-probabilities. n: that of the chosen token and of the n most likely ones."""
    stop: StopString | Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOPS)] | None = None
    """One string or several that end the output, and do not belong to it."""
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    """Tokens that end the output, as an end of sequence does."""
    repetition_detection: RepetitionDetection | None = None
    """Ends the output with the finish reason `repetition`."""
    ignore_eos: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    """What the answer has to be. Wins over everything that would leave no token of that."""

    def __post_init__(self) -> None:
        self._unify()
        if self.structured_outputs and self.ignore_eos:
            raise ValueError("Invalid field `ignore_eos`: with `structured_outputs` an end of sequence ends the output")
        if self.min_tokens and self.max_tokens and self.min_tokens > self.max_tokens:
            raise ValueError("Invalid field `min_tokens`: larger than `max_tokens`")

    def _unify(self) -> None:
        """Be the same, and encoded as the same, however it was written."""
        if isinstance(self.stop, str):
            msgspec.structs.force_setattr(self, "stop", (self.stop,))
        if not self.ignore_eos:
            msgspec.structs.force_setattr(self, "ignore_eos", None)
        if self.logit_bias:
            msgspec.structs.force_setattr(self, "logit_bias", dict(sorted(self.logit_bias.items())))

    @property
    def num_outputs(self) -> int:
        """How many outputs there are."""
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """All of `stop`."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()


MODEL_DEFAULTS = SamplingParams()
"""Whatever the model's own are. The very object is left out of what is written."""


class ObeyedSampling(SamplingParams, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The same as it is shown with a result: told, not asked for."""


class SamplingSettings(WireStruct, frozen=True, kw_only=True):
    """Sampling as a stage obeys it: every field decided. Greedy is `temperature == 0`; `top_k == 0` means no limit."""

    temperature: Temperature = 0.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: OutputPenalty = 0.0
    frequency_penalty: OutputPenalty = 0.0
    no_repeat_ngram_size: NgramSize = 0
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=MAX_BIASES)] = msgspec.field(default_factory=dict)
    bad_word_ids: Annotated[
        tuple[Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=1024)], ...],
        Meta(max_length=3 * MAX_BAD_WORDS),
    ] = ()
    """Sequences whose last token does not follow the others in the output."""
    min_tokens: NumTokens = 0
    end_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=2 * MAX_STOP_TOKENS)] = ()
    """Tokens that are not sampled before the output has `min_tokens` tokens."""
    seed: Seed = 0
    logprobs: NumTop | None = None
    grammar: GrammarSettings | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether tokens that the session holds already become more or less likely."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def needs_history(self) -> bool:
        """Whether the sampler must know which tokens the session holds already."""
        has_words = any(len(word) > 1 for word in self.bad_word_ids)
        return self.has_penalties or self.no_repeat_ngram_size > 0 or has_words or self.grammar is not None

    @property
    def largest_token_id(self) -> int:
        """The largest token id named here; -1 where none is."""
        words = (token_id for word in self.bad_word_ids for token_id in word)
        return max(chain(self.logit_bias, self.end_token_ids, words), default=-1)


class TokenLogprob(WireReport, frozen=True, kw_only=True):
    """Log-probability of one token: natural, after biases, penalties and masks, before temperature and filters.

    None is lower than -9999.
    """

    token_id: TokenId
    logprob: float
    spelling: bytes = b""
    """The bytes that it stands for, once the conductor has looked them up."""


class SampledToken(WireReport, frozen=True, kw_only=True):
    """A token that follows a segment, or one of its drafts. `position` is its index in the session."""

    session: SessionRef
    attempt: PositiveCount
    position: Count
    token_id: TokenId
    logprob: float | None = None
    top: tuple[TokenLogprob, ...] = ()
