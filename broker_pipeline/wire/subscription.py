"""What a process hears on one subject: whole, decoded messages, within a bound of bytes, and nothing lost in silence.

small connection ──┐                      room? ── no ──► SlowConsumerError: raised to the reader or told to
                   ├─► join parts ─► decode │             `on_dropped`, and answered to the sender
bulk connection ───┘        │          │    └── yes ─► queue ─► async for
                         PartError     ContractError
                            └──────────┴─► logged, counted, told to `on_malformed`, answered to the sender
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec
import structlog
from nats.aio.subscription import Subscription as NatsSubscription

from broker_pipeline.errors import (
    ContractError,
    MalformedEnvelopeError,
    PipelineError,
    SlowConsumerError,
    TransportError,
)
from broker_pipeline.subjects import bulk
from broker_pipeline.tracing.message_spans import record_received
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.assembler import Assembler, part_header, place, receive
from broker_pipeline.wire.codec import decode
from broker_pipeline.wire.mailbox import Mailbox
from broker_pipeline.wire.nats.message import NatsMessage
from broker_pipeline.wire.parts import open_whole
from broker_pipeline.wire.wire_tensor import WireTensor

if TYPE_CHECKING:
    from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

Body = TypeVar("Body", bound=msgspec.Struct)
OnMalformed = Callable[[ContractError, str], None]
OVERHEAD_BYTES = 1024
"""What a queued message is taken to cost alongside its bytes, so that empty ones are bounded as well."""


class Received(msgspec.Struct, Generic[Body], frozen=True):
    """One message. Its tensors are views of the receive buffer and keep it alive."""

    subject: str
    body: Body
    tensors: dict[str, WireTensor]
    reply: str
    """Where the sender wants an answer; empty when it wants none."""
    num_bytes: int
    transport: Transport

    async def respond(self, body: msgspec.Struct, tensors: dict[str, WireTensor] | None = None) -> None:
        """Answer a request. Raises `TransportError` when the message asked for no answer or cannot be answered now."""
        if not self.reply:
            raise TransportError(f"a message on {self.subject} asks for no answer")
        await self.transport.publish(self.reply, body, tensors)

    async def refuse(self, error: PipelineError) -> None:
        """Answer a request with an error, which is raised again where the request was made."""
        if self.reply:
            await self.transport.refuse(self.reply, error)


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
        transport: Transport,
        subject: str,
        body_type: type[Body],
        *,
        max_pending_bytes: int,
        on_malformed: OnMalformed | None = None,
        on_dropped: Callable[[SlowConsumerError, Body | None], None] | None = None,
    ) -> None:
        self.subject = subject
        self.max_pending_bytes = max_pending_bytes
        self.num_malformed = 0
        self.num_dropped = 0
        self._transport = transport
        self._body_type = body_type
        self._on_malformed = on_malformed
        self._on_dropped = on_dropped
        self._assembler = Assembler(
            max_message_bytes=min(max_pending_bytes - OVERHEAD_BYTES, transport.max_message_bytes)
        )
        self._mailbox: Mailbox[Received[Body] | _Drops | TransportError | None] = Mailbox()
        self._queued_bytes = 0
        self._open_drops: _Drops | None = None
        self._subscriptions: list[NatsSubscription] = []
        self._loop: asyncio.AbstractEventLoop

    @property
    def pending_bytes(self) -> int:
        """Bytes of messages that wait here, whole or in parts."""
        return self._queued_bytes + self._assembler.num_bytes

    # --- reading ---

    def __aiter__(self) -> Subscription[Body]:
        return self

    async def __anext__(self) -> Received[Body]:
        item = await self._mailbox.get()
        if isinstance(item, Received):
            self._queued_bytes -= item.num_bytes + OVERHEAD_BYTES
            return item
        if isinstance(item, _Drops):
            if self._open_drops is item:
                self._open_drops = None
            raise SlowConsumerError(
                f"{item.num_messages} messages ({item.num_bytes} bytes) on {self.subject} were dropped: "
                f"more than {self.max_pending_bytes} bytes were waiting to be read"
            )
        self._mailbox.put(item)  # whoever else reads here has to see the end as well
        if item is None:
            raise StopAsyncIteration
        raise item

    # --- receiving ---

    def place(self, headers: bytes, num_bytes: int) -> memoryview | None:
        """Say where a part that is about to be read belongs."""
        return place(headers, num_bytes, self._assembler)

    def on_message(self, message: NatsMessage) -> None:
        """Take one NATS message: a whole one, or a part."""
        try:
            if not message.headers:
                self._accept(message.payload, message.reply, has_room=False)
            elif whole := receive(message, self._assembler, self._loop.time(), self._room_bytes()):
                self._accept(whole.content, whole.reply, has_room=whole.is_joined)
        except SlowConsumerError as error:
            self._drop(error, message)
        except ContractError as error:
            self._reject(error, message.reply)

    def _room_bytes(self) -> int:
        return self.max_pending_bytes - self.pending_bytes - OVERHEAD_BYTES

    def _accept(self, content: bytes | memoryview, reply: str, *, has_room: bool) -> None:
        """Decode and queue a message; one that came in parts was given its room when it began."""
        num_bytes = len(content)
        if num_bytes + OVERHEAD_BYTES > self.max_pending_bytes and not has_room:
            raise MalformedEnvelopeError(f"{num_bytes} bytes, but {self.subject} takes {self.max_pending_bytes} in all")
        arrived = tracer.now()
        body, tensors = decode(*open_whole(content), self._body_type)
        record_received(body, self.subject, arrived, num_bytes)
        if num_bytes > self._room_bytes() and not has_room:
            raise SlowConsumerError(f"no room for {num_bytes} bytes; {self.pending_bytes} are waiting to be read")
        received = Received(self.subject, body, tensors, reply, num_bytes, self._transport)
        self._queued_bytes += num_bytes + OVERHEAD_BYTES
        self._open_drops = None
        self._mailbox.put(received)

    def _reject(self, error: ContractError, reply: str) -> None:
        self.num_malformed += 1
        log.warning("message_malformed", subject=self.subject, code=error.code, reason=str(error), answered=bool(reply))
        if self._on_malformed:
            self._on_malformed(error, reply)
        self._answer(reply, error)

    def _drop(self, error: SlowConsumerError, message: NatsMessage) -> None:
        error = SlowConsumerError(f"{self.subject}: {error}")
        part = part_header(message.headers)
        num_bytes = part.num_bytes if part else len(message.payload)
        self._note_drop(error, num_bytes, self._body_of(message.payload))
        self._answer(message.reply, error)

    def _note_drop(self, error: SlowConsumerError, num_bytes: int, body: Body | None) -> None:
        self.num_dropped += 1
        if self._on_dropped:
            self._on_dropped(error, body)
            return
        if self._open_drops is None:
            log.error("messages_dropped", subject=self.subject, reason=str(error))
            self._open_drops = _Drops()
            self._mailbox.put(self._open_drops)
        self._open_drops.num_messages += 1
        self._open_drops.num_bytes += num_bytes

    def _body_of(self, payload: bytes | memoryview) -> Body | None:
        """Decode the metadata of what is dropped, a message or its first part: it may say whom this concerns."""
        try:
            metadata, _ = open_whole(payload)
            return msgspec.json.decode(metadata, type=self._body_type)
        except (ContractError, msgspec.MsgspecError, ValueError):
            return None

    def _answer(self, reply: str, error: PipelineError) -> None:
        if not reply:
            return
        try:
            self._transport.refuse_now(reply, error)
        except TransportError as lost:
            log.warning("answer_lost", subject=self.subject, reason=str(lost))

    # --- told by the transport ---

    def expire(self, now: float) -> None:
        """Give up messages whose parts stopped coming."""
        for abandoned in self._assembler.expire(now):
            self._reject(abandoned.error, abandoned.reply)

    def connection_lost(self) -> None:
        """Give up messages whose remaining parts were on the connection that is gone."""
        for abandoned in self._assembler.abandon_all():
            self._reject(abandoned.error, abandoned.reply)

    def fail(self, error: TransportError) -> None:
        """End the iteration with an error."""
        self._mailbox.put(error)

    # --- life ---

    async def __aenter__(self) -> Subscription[Body]:
        small, large = self._transport.connections
        self._loop = asyncio.get_running_loop()
        self._transport.attach(self)
        try:
            for connection, subject in ((small, self.subject), (large, bulk(self.subject))):
                self._subscriptions.append(await connection.listen(subject, self))
            await asyncio.gather(small.barrier(), large.barrier())
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._transport.detach(self)
        for connection, subscription in zip(self._transport.connections, self._subscriptions, strict=False):
            await connection.unsubscribe(subscription)
        self._mailbox.put(None)
