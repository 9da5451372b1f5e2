"""What a request for a response is answered with, as OpenAI's clients read it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.api.openai.chat.answers import Answer, TokenLogprobs

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TextAnswer(Answer, frozen=True, kw_only=True):
    """A text that the model said."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


class ReasoningAnswer(Answer, frozen=True, kw_only=True):
    """What the model said before its answer."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class MessageItem(Answer, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """An answer."""

    id: str
    status: ItemStatus = "completed"
    role: Literal["assistant"] = "assistant"
    content: tuple[TextAnswer, ...]


class ReasoningItem(Answer, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """The reasoning before an answer, as it was said."""

    id: str
    status: ItemStatus = "completed"
    summary: tuple[()] = ()
    content: tuple[ReasoningAnswer, ...]


class CallItem(Answer, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call that the model asks for; `arguments` are JSON in a string."""

    id: str
    call_id: str
    status: ItemStatus = "completed"
    name: str
    arguments: str


Item = MessageItem | ReasoningItem | CallItem


class InputDetails(Answer, frozen=True, kw_only=True):
    """What the prompt's tokens were."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0
    image_tokens: int


class OutputDetails(Answer, frozen=True, kw_only=True):
    """What the output's tokens were."""

    reasoning_tokens: int


class ResponseUsage(Answer, frozen=True, kw_only=True):
    """Tokens of prompt and output."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(Answer, frozen=True, kw_only=True):
    """Why there is no answer."""

    code: str
    message: str


class IncompleteDetails(Answer, frozen=True, kw_only=True):
    """Why the answer ends in its middle."""

    reason: str


class DeletedResponse(Answer, frozen=True, kw_only=True):
    """A response that is no more."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class Response(Answer, frozen=True, kw_only=True):
    """A response, whole or as it stands."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str]
    model: str
    output: tuple[Item, ...] = ()
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, Any] = msgspec.field(default_factory=lambda: {"effort": None})
    safety_identifier: str | None = None
    service_tier: Literal["default", "flex"] = "default"
    store: bool = True
    temperature: float | None = None
    top_p: float | None = None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any] = "auto"
    tools: tuple[dict[str, Any], ...] = ()
    top_logprobs: int = 0
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
