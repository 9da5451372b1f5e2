"""The conversation that a response was made of, as items: what went before it, and what it was asked. Pure.

Pictures and videos are places only, without their bytes; ids of calls are our own, in the order of the calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_pipeline.errors import InvalidRequestError
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, JobSpec, TextPart, VisualPart
from gateway.api.openai.chat.answers import Answer
from gateway.api.openai.responses.answers import CallItem, ReasoningAnswer, ReasoningItem
from gateway.api.openai.responses.response import item_id


class InputItemQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which items to list; `after` is the `last_id` of an earlier page. `include` is passed over."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    include: str | None = None


class InputText(Answer, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """A text."""

    text: str


class InputImage(Answer, frozen=True, kw_only=True, tag_field="type", tag="input_image"):
    """Where a picture was."""

    detail: Literal["auto"] = "auto"
    file_id: None = None
    image_url: None = None


class InputVideo(Answer, frozen=True, kw_only=True, tag_field="type", tag="input_video"):
    """Where a video was."""


class SaidText(Answer, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """A text that the model said."""

    text: str
    annotations: tuple[()] = ()


Part = InputText | InputImage | InputVideo


class InputMessage(Answer, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """A message, of the model as well."""

    id: str
    status: Literal["completed"] = "completed"
    role: Literal["system", "user", "assistant"]
    content: tuple[Part | SaidText, ...]


class CallOutput(Answer, frozen=True, kw_only=True, tag_field="type", tag="function_call_output"):
    """What came of a call."""

    id: str
    status: Literal["completed"] = "completed"
    call_id: str
    output: tuple[Part, ...]


InputItem = InputMessage | CallOutput | ReasoningItem | CallItem


class InputItemList(Answer, frozen=True, kw_only=True):
    """A page of items."""

    object: Literal["list"] = "list"
    data: tuple[InputItem, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


def input_items(spec: JobSpec) -> list[InputItem]:
    """Return all items, in order; instructions are none."""
    skipped = spec.response is not None and spec.response.has_instructions
    return list(_Items(spec.job_id).of(spec.messages[skipped:]))


def page_of_items(items: Sequence[InputItem], query: InputItemQuery) -> InputItemList:
    """Return a page of items. Raises `InvalidRequestError` where none has the id `after`."""
    ordered = list(items if query.order == "asc" else reversed(items))
    start = 0
    if query.after is not None:
        start = next((index + 1 for index, item in enumerate(ordered) if item.id == query.after), 0)
        if not start:
            raise InvalidRequestError("none of the items has this id", field="after")
    shown = tuple(ordered[start : start + query.limit])
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return InputItemList(data=shown, first_id=first, last_id=last, has_more=start + query.limit < len(ordered))


class _Items:
    """Makes items of turns, and counts them."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._num_items = self._num_calls = self._num_outputs = 0

    def of(self, messages: Sequence[ChatMessage]) -> Iterator[InputItem]:
        for message in messages:
            if message.role == "tool":
                call_id = item_id("call_in", self._job_id, self._num_outputs)
                yield CallOutput(id=self._id(), call_id=call_id, output=tuple(map(_part, message.content)))
                self._num_outputs += 1
            elif message.role == "assistant":
                yield from self._said(message)
            else:
                yield InputMessage(id=self._id(), role=message.role, content=tuple(map(_part, message.content)))

    def _said(self, message: ChatMessage) -> Iterator[InputItem]:
        if message.reasoning:
            yield ReasoningItem(id=self._id(), content=(ReasoningAnswer(text=message.reasoning),))
        if texts := tuple(SaidText(text=part.text) for part in message.content if isinstance(part, TextPart)):
            yield InputMessage(id=self._id(), role="assistant", content=texts)
        for call in message.tool_calls:
            call_id = item_id("call_in", self._job_id, self._num_calls)
            arguments = msgspec.json.encode(call.arguments).decode()
            yield CallItem(id=self._id(), call_id=call_id, name=call.name, arguments=arguments)
            self._num_calls += 1

    def _id(self) -> str:
        self._num_items += 1
        return item_id("in", self._job_id, self._num_items - 1)


def _part(part: TextPart | VisualPart) -> Part:
    if isinstance(part, TextPart):
        return InputText(text=part.text)
    return InputImage() if isinstance(part, ImagePart) else InputVideo()
