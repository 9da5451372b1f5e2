"""The body of a chat completion. Limits stand in the types, as for our own API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from broker_pipeline.messages.template_options import MAX_TOOL_CALLS, MAX_TOOLS
from gateway.api.openai.content_parts import Content, Lenient
from gateway.api.openai.sampling import MaxTokens, SamplingRequest
from gateway.api.openai.tools import CalledTool, FunctionName, Tool
from gateway.schemas import Text


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


class JsonSchema(Lenient, frozen=True, kw_only=True):
    """A schema and what else is said about it."""

    schema: dict[str, Any] | None = None


class ResponseFormat(Lenient, frozen=True, kw_only=True):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChosenFunction(Lenient, frozen=True, kw_only=True):
    """The function that has to be called."""

    name: FunctionName


class ChosenTool(Lenient, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The tool that has to be called."""

    function: ChosenFunction


class AllowedTools(Lenient, frozen=True, kw_only=True):
    """Those of the tools that may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: Annotated[tuple[ChosenTool, ...], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolChoice(Lenient, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """A choice among some of the tools."""

    allowed_tools: AllowedTools


class ChatRequest(SamplingRequest, frozen=True, kw_only=True):
    """A chat completion. What other servers take besides is passed over, unless that would change the answer."""

    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: MaxTokens | None = None
    max_tokens: MaxTokens | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[tuple[Tool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | AllowedToolChoice | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    """`none` is `enable_thinking: false`; models of this family know no degrees."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
