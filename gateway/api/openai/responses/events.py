"""A job's tokens as the events of a streamed response. Pure.

    response.created ─► for each item: output_item.added ─► deltas ─► done ─► output_item.done ─► response.completed

Events are dictionaries, since each kind has fields of its own; every one has the next `sequence_number`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import TokenEntry
from gateway.api.openai.chat.completion import choice_logprobs
from gateway.api.openai.responses.answers import Item, ItemStatus, ReasoningAnswer, ReasoningItem, Response, TextAnswer
from gateway.api.openai.responses.response import call_item, item_id, message_item
from gateway.api.openai.tool_calls import FoundCall, ToolCallReader

Event = dict[str, Any]


class ResponseEvents:
    """The events of one job."""

    def __init__(self, job_id: str, *, has_tools: bool, has_logprobs: bool) -> None:
        self._job_id = job_id
        self._reader = ToolCallReader() if has_tools else None
        self._has_logprobs = has_logprobs
        self._num_events = 0
        self._num_items = 0
        self._open: str | None = None
        """The kind of the item under way: `reasoning` or `message`."""
        self._text = ""
        """What the item under way says so far."""

    def begin(self, response: Response) -> Iterator[Event]:
        """Yield what comes before any token."""
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def take(self, tokens: Sequence[TokenEntry]) -> Iterator[Event]:
        """Yield what some more tokens add."""
        if reasoning := "".join(entry.reasoning for entry in tokens):
            yield from self._say("reasoning", reasoning)
        text = "".join(entry.text for entry in tokens)
        told: Sequence[str | FoundCall] = self._reader.feed(text) if self._reader else [text] if text else []
        yield from self._tell(told, tokens)

    def end(self, response: Response) -> Iterator[Event]:
        """Yield what comes after the last token; `response` is the whole one."""
        if self._reader:
            yield from self._tell(self._reader.finish(), ())
        yield from self._close("completed" if response.status == "completed" else "incomplete")
        yield self._event(f"response.{response.status}", response=response)

    def fail(self, failure: Failure) -> Event:
        """Return the event of a stream that ends without a response."""
        return self._event("error", code=failure.code, message=failure.message, param=failure.field)

    def _tell(self, told: Sequence[str | FoundCall], tokens: Sequence[TokenEntry]) -> Iterator[Event]:
        for each in told:
            if isinstance(each, FoundCall):
                yield from self._close()
                yield from self._call(each)
            else:
                yield from self._say("message", each, tokens)
                tokens = ()

    def _say(self, kind: str, text: str, tokens: Sequence[TokenEntry] = ()) -> Iterator[Event]:
        if self._open != kind:
            yield from self._close()
            self._open, self._text = kind, ""
            yield self._event("response.output_item.added", item=self._item("in_progress", is_empty=True))
            yield self._of_part("response.content_part.added", part=self._part())
        self._text += text
        if kind == "reasoning":
            yield self._of_part("response.reasoning_text.delta", delta=text)
        else:
            logprobs = choice_logprobs(tokens).content if self._has_logprobs else ()
            yield self._of_part("response.output_text.delta", delta=text, logprobs=logprobs)

    def _close(self, status: ItemStatus = "completed") -> Iterator[Event]:
        if self._open is None:
            return
        if self._open == "reasoning":
            yield self._of_part("response.reasoning_text.done", text=self._text)
        else:
            yield self._of_part("response.output_text.done", text=self._text, logprobs=())
        yield self._of_part("response.content_part.done", part=self._part())
        yield self._event("response.output_item.done", item=self._item(status))
        self._open = None
        self._num_items += 1

    def _call(self, found: FoundCall) -> Iterator[Event]:
        item = call_item(self._job_id, self._num_items, found)
        begun = msgspec.structs.replace(item, status="in_progress", arguments="")
        yield self._event("response.output_item.added", item=begun)
        named = {"item_id": item.id, "name": item.name}
        yield self._event("response.function_call_arguments.delta", item_id=item.id, delta=item.arguments)
        yield self._event("response.function_call_arguments.done", **named, arguments=item.arguments)
        yield self._event("response.output_item.done", item=item)
        self._num_items += 1

    def _item(self, status: Any, *, is_empty: bool = False) -> Item:
        if self._open == "reasoning":
            part = ReasoningAnswer(text=self._text)
            item: Item = ReasoningItem(id=item_id("rs", self._job_id, self._num_items), content=(part,))
        else:
            item = message_item(self._job_id, self._num_items, self._text)
        item = msgspec.structs.replace(item, status=status)
        return msgspec.structs.replace(item, content=()) if is_empty else item

    def _part(self) -> TextAnswer | ReasoningAnswer:
        return ReasoningAnswer(text=self._text) if self._open == "reasoning" else TextAnswer(text=self._text)

    def _of_part(self, kind: str, **fields: Any) -> Event:
        return self._event(kind, item_id=self._item("in_progress").id, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        place = {} if "response" in fields or kind == "error" else {"output_index": self._num_items}
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **place, **fields}
