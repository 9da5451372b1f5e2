"""What a process hears on one subject: whole, decoded messages, within a bound of bytes, and nothing lost in silence.

Link ─┬─ on_message ──► decode ──► queue ──► async for
      │                    │ ContractError
      ├─ on_malformed ◄────┘       logged, counted, told to `on_malformed`, answered to the sender
      └─ on_dropped                SlowConsumerError: raised to the reader or told to `on_dropped`, answered as well
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import msgspec
import structlog

from broker_pipeline.errors import ContractError, PipelineError, SlowConsumerError, TransportError
from broker_pipeline.tracing.message_spans import record_received
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.codec import decode
from broker_pipeline.wire.link import Message
from broker_pipeline.wire.mailbox import Mailbox
from broker_pipeline.wire.received import Answers, Body, Received
from broker_pipeline.wire.room import Room

log = structlog.get_logger()

OnMalformed = Callable[[ContractError, str], None]
OnDropped = Callable[[SlowConsumerError, Body | None], None]


@dataclass(slots=True)
class _Drops:
    """A gap in the queue: what was dropped between two messages."""

    num_messages: int = 0
    num_bytes: int = 0


class Subscription(Generic[Body]):
    """An asynchronous iterator over the messages of one subject; made by `Transport.subscribe`.

    Raises from the iteration: `SlowConsumerError` where messages were dropped (unless `on_dropped` takes these;
    iterating may go on afterwards), `TransportError` when the connection is gone for good.
    """

    def __init__(
        self,
        subject: str,
        body_type: type[Body],
        answers: Answers,
        room: Room,
        lost: Counter[type[PipelineError]],
        *,
        on_malformed: OnMalformed | None = None,
        on_dropped: OnDropped[Body] | None = None,
    ) -> None:
        """See `Transport.subscribe`; at most what `room` holds waits to be read, and `lost` counts what is not."""
        self.subject = subject
        self.room = room
        self._body_type = body_type
        self._answers = answers
        self._lost = lost
        self._on_malformed = on_malformed
        self._on_dropped = on_dropped
        self._mailbox: Mailbox[Received[Body] | _Drops | TransportError | None] = Mailbox()
        self._open_drops: _Drops | None = None

    # --- reading ---

    def __aiter__(self) -> Subscription[Body]:
        return self

    async def __anext__(self) -> Received[Body]:
        item = await self._mailbox.get()
        if isinstance(item, Received):
            self.room.free(item.num_bytes)
            return item
        if isinstance(item, _Drops):
            if self._open_drops is item:
                self._open_drops = None
            raise SlowConsumerError(
                f"{item.num_messages} messages ({item.num_bytes} bytes) on {self.subject} were dropped: "
                f"more than {self.room.max_bytes} bytes were waiting to be read"
            )
        self._mailbox.put(item)  # whoever else reads here has to see the end as well
        if item is None:
            raise StopAsyncIteration
        raise item

    def end(self, error: TransportError | None = None) -> None:
        """End the iteration, with an error where there is one."""
        self._mailbox.put(error)

    # --- told by the link ---

    def on_message(self, message: Message) -> None:
        """Decode a message and put it into the queue."""
        arrived = tracer.now()
        body, tensors = decode(message.metadata, message.payload, self._body_type)
        record_received(body, message.subject or self.subject, arrived, message.num_bytes)
        self._open_drops = None
        received = Received(
            message.subject or self.subject,
            body,
            tensors,
            message.reply,
            message.num_bytes,
            self._answers,
            arrived,
            message.is_lent,
        )
        self._mailbox.put(received)

    def on_malformed(self, error: ContractError, reply: str) -> None:
        """Count, tell and answer a message that breaks the contract."""
        self._lost[type(error)] += 1
        log.warning("message_malformed", subject=self.subject, code=error.code, reason=str(error), answered=bool(reply))
        if self._on_malformed:
            self._on_malformed(error, reply)
        self._answer(reply, error)

    def on_dropped(self, error: SlowConsumerError, metadata: memoryview, num_bytes: int, reply: str) -> None:
        """Count, tell and answer a message for which there is no room."""
        error = SlowConsumerError(f"{self.subject}: {error}")
        self._lost[type(error)] += 1
        if self._on_dropped:
            self._on_dropped(error, self._body_of(metadata))
        else:
            self._note_drop(error, num_bytes)
        self._answer(reply, error)

    def _note_drop(self, error: SlowConsumerError, num_bytes: int) -> None:
        if self._open_drops is None:
            log.error("messages_dropped", subject=self.subject, reason=str(error))
            self._open_drops = _Drops()
            self._mailbox.put(self._open_drops)
        self._open_drops.num_messages += 1
        self._open_drops.num_bytes += num_bytes

    def _body_of(self, metadata: memoryview) -> Body | None:
        """Decode the metadata of what is dropped: it may say whom this concerns."""
        try:
            return msgspec.json.decode(metadata, type=self._body_type)
        except (msgspec.MsgspecError, ValueError):
            return None

    def _answer(self, reply: str, error: PipelineError) -> None:
        if not reply:
            return
        try:
            self._answers.refuse(reply, error)
        except TransportError as lost:
            log.warning("answer_lost", subject=self.subject, reason=str(lost))
