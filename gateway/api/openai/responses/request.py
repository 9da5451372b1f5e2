"""The body of a request for a response."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.messages.template_options import MAX_TOOLS
from gateway.api.openai.content_parts import Content, Lenient
from gateway.api.openai.sampling import MaxTokens, SamplingRequest
from gateway.api.openai.tools import Function, FunctionName
from gateway.schemas import Text


class ReasoningText(Lenient, frozen=True, kw_only=True):
    """A piece of what the model said before an answer."""

    text: Text


class InputItem(Lenient, frozen=True, kw_only=True):
    """One item of the conversation; which fields it has depends on its type."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content | None = None
    name: FunctionName | None = None
    arguments: Text = "{}"
    output: Content | None = None
    summary: tuple[ReasoningText, ...] | None = None


class ResponseTool(Function, frozen=True, kw_only=True):
    """A function that the model may call."""

    type: Literal["function"]
    strict: bool | None = None


class ChosenFunction(Lenient, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """The function that has to be called."""

    name: FunctionName


class AllowedFunctions(Lenient, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """Those of the functions that may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: Annotated[tuple[ChosenFunction, ...], Meta(min_length=1, max_length=MAX_TOOLS)]


class TextFormat(Lenient, frozen=True, kw_only=True, omit_defaults=True):
    """What the answer has to be. All but `type` and `schema` is told to nobody but the client."""

    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = None
    description: Text | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(Lenient, frozen=True, kw_only=True, omit_defaults=True):
    """How the answer is said."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningConfig(Lenient, frozen=True, kw_only=True):
    """How the model reasons; `none` for `effort` is `enable_thinking: false`."""

    effort: str | None = None


class ResponseRequest(SamplingRequest, frozen=True, kw_only=True):
    """A response. What other servers take besides is passed over, unless that would change the answer."""

    input: Text | Annotated[tuple[InputItem, ...], Meta(min_length=1, max_length=1024)]
    instructions: Text | None = None
    previous_response_id: str | None = None
    max_output_tokens: MaxTokens | None = None
    include: tuple[str, ...] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    tools: Annotated[tuple[ResponseTool, ...], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | AllowedFunctions | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """Nothing is ever cut out of a prompt: one that is too long is refused."""
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None


ECHOED = (
    *("background", "max_tool_calls", "parallel_tool_calls", "prompt_cache_key", "reasoning", "safety_identifier"),
    *("store", "text", "tool_choice", "tools", "top_logprobs", "truncation", "user"),
)
"""Fields that every answer says again."""


def echoed(request: ResponseRequest) -> dict[str, Any]:
    """Return those that the request has."""
    given = {name: getattr(request, name) for name in ECHOED}
    tier = {"service_tier": "flex"} if request.service_tier == "flex" else {}  # the others change nothing
    return tier | {name: msgspec.to_builtins(value) for name, value in given.items() if value is not None}
