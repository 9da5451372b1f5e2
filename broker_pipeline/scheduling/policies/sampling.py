"""From what a user asked for to what a stage obeys: every open field takes the model's default. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.sampling import ObeyedSampling, SamplingParams, SamplingSettings
from broker_pipeline.messages.structured_outputs import GrammarSettings
from broker_pipeline.model_facts import GenerationDefaults

T = TypeVar("T")

TokenIds = tuple[int, ...]


def resolve_sampling(
    params: SamplingParams,
    defaults: GenerationDefaults,
    job_id: str,
    *,
    end_token_ids: TokenIds = (),
    bad_word_ids: tuple[TokenIds, ...] = (),
    grammar: GrammarSettings | None = None,
) -> SamplingSettings:
    """Decide every sampling field of a job's first output; `of_output` has those of the others.

    Without `do_sample` in the model's defaults, the default is greedy. The seed defaults to a hash of the job's id, so
    that a job which runs again gives the same tokens.
    """
    usual_temperature = _first(defaults.temperature, 1.0) if defaults.do_sample else 0.0
    return SamplingSettings(
        temperature=_first(params.temperature, usual_temperature),
        top_k=_first(params.top_k, defaults.top_k, 0),
        top_p=_first(params.top_p, defaults.top_p, 1.0),
        min_p=_first(params.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(params.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=_first(params.presence_penalty, defaults.presence_penalty, 0.0),
        frequency_penalty=_first(params.frequency_penalty, defaults.frequency_penalty, 0.0),
        no_repeat_ngram_size=_first(params.no_repeat_ngram_size, defaults.no_repeat_ngram_size, 0),
        logit_bias=params.logit_bias or {},
        bad_word_ids=bad_word_ids,
        min_tokens=params.min_tokens or 0,
        end_token_ids=end_token_ids if params.min_tokens else (),
        seed=_first(params.seed, seed_of(job_id)),
        logprobs=params.logprobs,
        grammar=grammar,
    )


def as_asked(asked: SamplingParams, settings: SamplingSettings) -> ObeyedSampling:
    """Return what a job obeys in the words of its sender, every default decided.

    Its output limit is not in there: the model and its stages have a say in that.
    """
    names = [name for name in SamplingParams.__struct_fields__ if name in SamplingSettings.__struct_fields__]
    decided = {name: getattr(settings, name) for name in names}
    kept = {"logit_bias": asked.logit_bias, "max_tokens": None}
    return ObeyedSampling(**msgspec.structs.asdict(asked) | decided | kept)


def of_output(choice: int, first: SamplingSettings, *, answer_begins_after: int | None = None) -> SamplingSettings:
    """Return what output number `choice` of a job obeys: as the first one, with a seed that is so much larger.

    Its grammar, if there is one, holds from the beginning, or after the token `answer_begins_after`.
    """
    grammar = first.grammar and msgspec.structs.replace(first.grammar, begins_after=answer_begins_after)
    return msgspec.structs.replace(first, seed=_as_signed(first.seed + choice), grammar=grammar)


def end_token_ids(params: SamplingParams, eos_token_ids: Sequence[int]) -> TokenIds:
    """Return the tokens that end the output: the model's, unless they are ignored, and those asked for."""
    return (*(() if params.ignore_eos else eos_token_ids), *(params.stop_token_ids or ()))


def bad_word_ids(words: Sequence[str], encode: Callable[[str], TokenIds]) -> tuple[TokenIds, ...]:
    """Return the token sequences of words: as they are, at the beginning of a text, and behind a space."""
    spelled = [text for word in words for bare in (word.lstrip(" "),) for text in (word, bare, f" {bare}") if text]
    return tuple(dict.fromkeys(token_ids for text in spelled if (token_ids := encode(text))))


def check_token_ids(params: SamplingParams, vocab_size: int, where: str = "sampling.") -> None:
    """Raise `InvalidRequestError` where a token is named that the model does not have; `where` begins fields' names."""
    for name, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        if (largest := max(token_ids or (), default=0)) >= vocab_size:
            raise InvalidRequestError(
                f"the model has no token {largest}; its tokens are 0 to {vocab_size - 1}", field=f"{where}{name}"
            )


def _as_signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def seed_of(job_id: str) -> int:
    """Return a job's own seed: 64 bits, signed, of the SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "little", signed=True)


def _first(*candidates: T | None) -> T:
    return next(candidate for candidate in candidates if candidate is not None)
