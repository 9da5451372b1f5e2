"""The body of a chat completion. Limits stand in the types, as for our own API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from broker_pipeline.messages.base import TokenId
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
    Seed,
    StopString,
    Temperature,
    TopP,
)
from broker_pipeline.messages.template_options import MAX_TOOL_CALLS, MAX_TOOLS
from gateway.api.openai.content_parts import Content, Lenient
from gateway.api.openai.tools import CalledTool, FunctionName, Tool
from gateway.schemas import Metadata, Text

MaxTokens = Annotated[int, Meta(ge=1, le=262_144)]


class Message(Lenient, frozen=True, kw_only=True):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None
    """What `reasoning` is called elsewhere."""
    tool_calls: Annotated[tuple[CalledTool, ...], Meta(max_length=MAX_TOOL_CALLS)] | None = None


class StreamOptions(Lenient, frozen=True, kw_only=True):
    """What a stream tells besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(Lenient, frozen=True, kw_only=True):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChosenFunction(Lenient, frozen=True, kw_only=True):
    """The function that has to be called."""

    name: FunctionName


class ChosenTool(Lenient, frozen=True, kw_only=True):
    """The tool that has to be called."""

    type: Literal["function"] = "function"
    function: ChosenFunction


class ChatRequest(Lenient, frozen=True, kw_only=True):
    """A chat completion. What other servers take besides is passed over, unless that would change the answer."""

    model: str
    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
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
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: NumTop | None = None
    stop: StopString | Annotated[tuple[StopString, ...], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    repetition_detection: RepetitionDetection | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    """`none` is `enable_thinking: false`; models of this family know no degrees."""
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    metadata: Metadata | None = None


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
            "echo",
            "logits_processors",
            "media_io_kwargs",
            "mm_processor_kwargs",
            "prompt_logprobs",
            "thinking_token_budget",
            "use_beam_search",
        ],
        "is not there",
    ),
}
"""Fields that would change the answer, so that passing over them would be worse than saying so."""
