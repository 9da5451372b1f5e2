"""Sampling as OpenAI's clients ask for it, by whichever of its endpoints."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.base import TokenId
from broker_pipeline.messages.jobs import Priority
from broker_pipeline.messages.sampling import (
    MAX_BAD_WORDS,
    MAX_BIASES,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    BadWord,
    Bias,
    MinP,
    NgramSize,
    NumTokens,
    NumTop,
    OutputPenalty,
    RepetitionDetection,
    RepetitionPenalty,
    SamplingParams,
    Seed,
    StopString,
    Temperature,
    TopP,
)
from broker_pipeline.messages.structured_outputs import StructuredOutputs
from broker_pipeline.messages.template_options import ENABLE_THINKING, RESERVED_VARIABLES
from gateway.api.openai.content_parts import Lenient
from gateway.intake.validation import decode_json
from gateway.schemas import Metadata

MaxTokens = Annotated[int, Meta(ge=1, le=262_144)]


class SamplingRequest(Lenient, frozen=True, kw_only=True):
    """What every request for an answer may say."""

    model: str
    min_tokens: NumTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    """0 and -1 are no limit."""
    min_p: MinP | None = None
    presence_penalty: OutputPenalty | None = None
    frequency_penalty: OutputPenalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    no_repeat_ngram_size: NgramSize | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=MAX_BIASES)] | None = None
    bad_words: Annotated[tuple[BadWord, ...], Meta(max_length=MAX_BAD_WORDS)] | None = None
    seed: Seed | None = None
    top_logprobs: NumTop | None = None
    stop: StopString | Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    repetition_detection: RepetitionDetection | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    """`flex` asks for a batch job's priority; the others change nothing."""


REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
        "is no longer there; use `structured_outputs` or `response_format`",
    ),
    **dict.fromkeys(("functions", "function_call"), "is no longer there; use `tools` and `tool_choice`"),
    **dict.fromkeys(
        [
            "allowed_token_ids",
            "audio",
            "chat_template",
            "conversation",
            "documents",
            "echo",
            "logits_processors",
            "media_io_kwargs",
            "mm_processor_kwargs",
            "prompt",
            "prompt_logprobs",
            "thinking_token_budget",
            "truncate_prompt_tokens",
            "use_beam_search",
            "web_search_options",
        ],
        "is not there on this server; leave it out",
    ),
}
"""Fields that would change the answer, so that passing over them would be worse than saying so."""

_Refused = msgspec.defstruct("_Refused", [(name, Any, None) for name in REFUSED], frozen=True)
_SAME_FIELDS = tuple(
    name
    for name in SamplingParams.__struct_fields__
    if name in SamplingRequest.__struct_fields__ and name not in {"top_k", "structured_outputs"}
)


def refuse_unsupported(body: bytes) -> None:
    """Raise `InvalidRequestError` for what would change the answer and is not there."""
    sent = decode_json(body, _Refused)  # passes over pictures, and so takes a fiftieth of a search for the names
    for name, why in REFUSED.items():
        if getattr(sent, name) not in (None, False):
            raise InvalidRequestError(f"this {why}", field=name)


def priority_of(request: SamplingRequest) -> Priority:
    """Return the priority that a service tier stands for: `flex` is OpenAI's for what may wait."""
    return "batch" if request.service_tier == "flex" else "interactive"


def sampling_of(
    request: SamplingRequest,
    form: StructuredOutputs | None,
    *,
    max_tokens: int | None,
    num_logprobs: int | None,
    n: int | None = None,
) -> SamplingParams:
    """Return what a job obeys, whose answer has a `form`; what is left out is the model's own default."""
    if form is not None and request.ignore_eos:
        raise InvalidRequestError("an answer of a given form ends with an end of sequence", field="ignore_eos")
    if request.min_tokens and max_tokens and request.min_tokens > max_tokens:
        raise InvalidRequestError("larger than the output may be", field="min_tokens")
    return SamplingParams(
        max_tokens=max_tokens,
        top_k=None if request.top_k is None else max(request.top_k, 0),
        logprobs=num_logprobs,
        n=n,
        structured_outputs=form,
        **{name: getattr(request, name) for name in _SAME_FIELDS},
    )


def template_variables(request: SamplingRequest, effort: str | None) -> dict[str, Any]:
    """Return what the chat template is told; `effort` is how much the model shall reason."""
    variables = request.chat_template_kwargs or {}
    for name in variables:
        if name in RESERVED_VARIABLES:
            raise InvalidRequestError("the template has this from elsewhere", field=f"chat_template_kwargs.{name}")
    return {ENABLE_THINKING: False, **variables} if effort == "none" else variables
