"""What a chat completion is answered with, as OpenAI's clients read it and vLLM extends it."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what clients are told. What is `UNSET` is left out, what is None is null."""


class PromptDetails(Answer, frozen=True, kw_only=True):
    """What the prompt's tokens were."""

    cached_tokens: int = 0
    image_tokens: int


class CompletionDetails(Answer, frozen=True, kw_only=True):
    """What the output's tokens were."""

    reasoning_tokens: int


class ChatUsage(Answer, frozen=True, kw_only=True):
    """Tokens of prompt and outputs."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails | UnsetType = UNSET
    completion_tokens_details: CompletionDetails | UnsetType = UNSET


class TopLogprob(Answer, frozen=True, kw_only=True):
    """A token that could have stood there; its bytes may be a part of a character only."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprobs(TopLogprob, frozen=True, kw_only=True):
    """A token that stands there, and those that could have."""

    top_logprobs: tuple[TopLogprob, ...]


class ChoiceLogprobs(Answer, frozen=True, kw_only=True):
    """Log-probabilities of an output's tokens, the reasoning's among them."""

    content: tuple[TokenLogprobs, ...]
    refusal: None = None


class CalledFunctionAnswer(Answer, frozen=True, kw_only=True):
    """Which function is to be called; `arguments` are JSON in a string."""

    name: str
    arguments: str


class ToolCallAnswer(Answer, frozen=True, kw_only=True):
    """A call that the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunctionAnswer


class ToolCallDelta(ToolCallAnswer, frozen=True, kw_only=True):
    """The same in a stream, whole."""

    index: int


class AnswerMessage(Answer, frozen=True, kw_only=True):
    """What the model said. `reasoning` and `reasoning_content` are the same by the two names that clients look for."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[ToolCallAnswer, ...] | UnsetType = UNSET


class ChatChoice(Answer, frozen=True, kw_only=True):
    """One of the outputs."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: str
    stop_reason: str | int | None
    """Which stop string or token of the request ended it; vLLM's."""


class ChatCompletion(Answer, frozen=True, kw_only=True):
    """A whole chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: ChatUsage


class Delta(Answer, frozen=True, kw_only=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: tuple[ToolCallDelta, ...] | UnsetType = UNSET


class ChunkChoice(Answer, frozen=True, kw_only=True):
    """What a chunk adds to an output."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    """Beside a finish reason, as in a whole completion."""


class ChatChunk(Answer, frozen=True, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    usage: ChatUsage | UnsetType | None = UNSET
