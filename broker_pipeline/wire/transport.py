"""Typed messages with tensors over NATS, on two connections.

    publish / request                                                         subscribe
    encode ─► size ≤ 64 KiB ─► small connection ──► subject ────────► small connection ──┐
                    │                                                                    ├─► join, decode ─► async for
                    └ larger ─► cut into parts ─► bulk connection ──► bulk.subject ──────┘

A decode step's messages do not wait behind a prefill chunk's, neither at the sender nor at the receiver, since each
side keeps large messages on a connection of their own. Between the two there is no order; on each there is.

Delivery is NATS core's: at most once. What is in flight at a reconnect may be gone, so that requests have a timeout
and microbatches a deadline. Nothing is gone in silence as long as the process lives: see `Subscription` for slow
readers, `Transport.wait_failed` for connections lost for good.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import msgspec
import structlog
from nats.js.client import JetStreamContext

from broker_pipeline.errors import (
    NoResponderError,
    PayloadTooLargeError,
    PipelineError,
    RequestTimeoutError,
    SlowConsumerError,
    TransportError,
)
from broker_pipeline.subjects import bulk
from broker_pipeline.tracing.message_spans import record_received, record_sent
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.assembler import Assembler, WireMessage
from broker_pipeline.wire.codec import Frame, decode, encode
from broker_pipeline.wire.nats.connection import NatsConnection, open_connection
from broker_pipeline.wire.nats.message import header_block
from broker_pipeline.wire.parts import SizeRules, cut, open_whole, whole_bytes, whole_pieces
from broker_pipeline.wire.reply_inbox import FAILURE_HEADER, ReplyInbox, Waiting
from broker_pipeline.wire.subscription import OnMalformed, Received, Subscription
from broker_pipeline.wire.wire_tensor import WireTensor

__all__ = ["Received", "Subscription", "Transport"]

log = structlog.get_logger()

Body = TypeVar("Body", bound=msgspec.Struct)

BULK_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 256 * 2**20
MAX_PENDING_BYTES = 256 * 2**20
_SWEEP_S = 0.5


class Transport:
    """Two connections to NATS, used as one. Made by `Transport.open`."""

    def __init__(self, *, bulk_bytes: int, max_message_bytes: int) -> None:
        self.bulk_bytes = bulk_bytes
        """Messages of more bytes than this take the bulk connection."""
        self.max_message_bytes = max_message_bytes
        self._small: NatsConnection
        self._bulk: NatsConnection
        self._inboxes: tuple[ReplyInbox, ...] = ()
        self._receivers: set[Subscription[Any]] = set()
        self._failed = asyncio.Event()
        self._failure: TransportError | None = None
        self._message_prefix = secrets.token_hex(8)
        self._message_numbers = itertools.count()
        self._cut_turn = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        nats_url: str,
        *,
        name: str,
        connect_timeout_s: float = 10.0,
        bulk_bytes: int = BULK_BYTES,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> AsyncIterator[Transport]:
        """Connect; on leaving, send what is unsent and close.

        `name` is shown in the server's monitoring. Raises `TransportError` when no server answers in time.
        """
        transport = cls(bulk_bytes=bulk_bytes, max_message_bytes=max_message_bytes)
        async with AsyncExitStack() as stack:
            transport._small = await stack.enter_async_context(
                open_connection(nats_url, name, on_failed=transport._on_failed, timeout_s=connect_timeout_s)
            )
            transport._bulk = await stack.enter_async_context(
                open_connection(nats_url, f"{name}-bulk", on_failed=transport._on_failed, timeout_s=connect_timeout_s)
            )
            await transport._open_inboxes()
            sweeper = asyncio.create_task(transport._sweep(), name=f"{name}-parts")
            sweeper.add_done_callback(transport._on_sweeper_done)
            try:
                yield transport
            finally:
                sweeper.cancel()
                await asyncio.wait([sweeper])

    # --- sending ---

    async def publish(
        self, subject: str, body: msgspec.Struct, tensors: Mapping[str, WireTensor] | None = None
    ) -> None:
        """Send a message to whoever listens; to nobody, silently, when nobody does.

        The tensors may change again once this returns. Raises `PayloadTooLargeError` before anything is sent,
        `TransportError` when the server cannot be reached.
        """
        started = tracer.now()
        frame = encode(body, tensors)
        encoded = tracer.now()
        await self._send(subject, frame)
        record_sent(body, subject, started, encoded, frame.num_payload_bytes)

    async def request(
        self,
        subject: str,
        body: msgspec.Struct,
        tensors: Mapping[str, WireTensor] | None = None,
        *,
        reply_type: type[Body],
        timeout_s: float,
    ) -> Received[Body]:
        """Send a message and return the answer.

        Raises `NoResponderError` at once when nobody listens, `RequestTimeoutError` when no answer has come within
        `timeout_s` seconds, the error that the other side answered with, a `ContractError` for an answer that
        cannot be read, and what `publish` raises.
        """
        started = tracer.now()
        frame = encode(body, tensors)
        encoded = tracer.now()
        # That nobody listens, the server says only to an inbox on the connection that the request came over.
        inbox = self._inboxes[self._takes_bulk(frame)]
        with inbox.expect() as (reply, answer):
            try:
                async with asyncio.timeout(timeout_s):
                    await self._send(subject, frame, reply)
                    record_sent(body, subject, started, encoded, frame.num_payload_bytes)
                    message = await answer
            except TimeoutError as error:
                raise RequestTimeoutError(f"no answer from {subject} within {timeout_s:g} s") from error
            except NoResponderError as error:
                raise NoResponderError(f"nobody listens on {subject}") from error
        return self._received(reply, message, reply_type)

    async def refuse(self, reply: str, error: PipelineError) -> None:
        """Answer a request with an error, which is raised again where the request was made."""
        await self._small.publish(reply, headers=_failure_headers(error))

    def refuse_now(self, reply: str, error: PipelineError) -> None:
        """Like `refuse`, without ever waiting: raises `TransportError` also when far too much is unsent."""
        self._small.publish_now(reply, headers=_failure_headers(error))

    def _takes_bulk(self, frame: Frame) -> bool:
        return whole_bytes(frame) > self.bulk_bytes

    async def _send(self, subject: str, frame: Frame, reply: str = "") -> None:
        num_bytes = whole_bytes(frame)
        if num_bytes > self.max_message_bytes:
            raise PayloadTooLargeError(
                f"{num_bytes} bytes for {subject}; messages of up to {self.max_message_bytes} are sent"
            )
        if num_bytes > self.bulk_bytes:
            # One large message after the other: interleaved, all of them would arrive as late as the last.
            async with self._cut_turn:
                await self._send_on(self._bulk, bulk(subject), frame, reply)
        elif num_bytes <= SizeRules.for_server(self._small.max_payload).part_bytes:
            await self._small.publish(subject, *whole_pieces(frame), reply=reply)
        else:
            await self._send_on(self._small, subject, frame, reply)

    async def _send_on(self, connection: NatsConnection, subject: str, frame: Frame, reply: str) -> None:
        rules = SizeRules.for_server(connection.max_payload)
        if whole_bytes(frame) <= rules.part_bytes:
            await connection.publish(subject, *whole_pieces(frame), reply=reply)
            return
        message = f"{self._message_prefix}-{next(self._message_numbers)}"
        for number, part in enumerate(cut(frame, rules, message)):
            if number:
                await asyncio.sleep(0)  # lets the first parts leave while the next are prepared
            await connection.publish(subject, *part.pieces, headers=part.headers, reply=reply)

    def _received(self, subject: str, message: WireMessage, body_type: type[Body]) -> Received[Body]:
        arrived = tracer.now()
        body, tensors = decode(*open_whole(message.content), body_type)
        num_bytes = len(message.content)
        record_received(body, subject, arrived, num_bytes)
        return Received(subject, body, tensors, "", num_bytes, self)

    # --- receiving ---

    def subscribe(
        self,
        subject: str,
        body_type: type[Body],
        *,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        on_malformed: OnMalformed | None = None,
        on_dropped: Callable[[SlowConsumerError, Body | None], None] | None = None,
    ) -> Subscription[Body]:
        """Listen on a subject (wildcards allowed) while the returned context is open.

        Entering it returns when the server has the subscription. At most `max_pending_bytes` wait to be read; what
        comes beyond is dropped, and said: to `on_dropped(error, body)` (the body where it could be read), or, without
        it, by `SlowConsumerError` from the iteration. A message that breaks the contract is logged, counted, told to
        `on_malformed(error, reply)`, and answered when it is a request; the iteration never sees it.
        """
        return Subscription(
            self,
            subject,
            body_type,
            max_pending_bytes=max_pending_bytes,
            on_malformed=on_malformed,
            on_dropped=on_dropped,
        )

    @property
    def connections(self) -> tuple[NatsConnection, NatsConnection]:
        """The connection for small messages and the one for large ones."""
        return self._small, self._bulk

    def attach(self, subscription: Subscription[Any]) -> None:
        """Keep a subscription told of what happens to the connections."""
        self._receivers.add(subscription)
        if self._failure:
            subscription.fail(self._failure)

    def detach(self, subscription: Subscription[Any]) -> None:
        """Forget a subscription that is being closed."""
        self._receivers.discard(subscription)

    # --- state ---

    @property
    def is_connected(self) -> bool:
        """Whether both connections stand at this moment."""
        return self._small.is_connected and self._bulk.is_connected

    @property
    def max_payload(self) -> int:
        """The server's limit for one NATS message; larger messages travel in parts."""
        return min(self._small.max_payload, self._bulk.max_payload)

    @property
    def num_reconnects(self) -> int:
        """How often one of the connections was lost and made again."""
        return self._small.num_reconnects + self._bulk.num_reconnects

    def add_reconnect_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever one of the connections is back: what was in flight may be gone."""
        for connection in self.connections:
            connection.on_reconnected(listener)

    async def wait_failed(self) -> None:
        """Wait for the end: never returns, raises `TransportError` when a connection is closed for good."""
        await self._failed.wait()
        raise self._failure or TransportError("the transport failed")

    def jetstream(self, *, for_bulk: bool = False, timeout_s: float = 5.0) -> JetStreamContext:
        """Return nats-py's JetStream on the small connection, or on the bulk one."""
        connection = self._bulk if for_bulk else self._small
        return connection.client.jetstream(timeout=timeout_s)

    # --- life ---

    async def _open_inboxes(self) -> None:
        root, waiting = f"{self._small.inbox}.reply", Waiting()
        self._inboxes = tuple(
            ReplyInbox(connection, subject, Assembler(max_message_bytes=self.max_message_bytes), waiting)
            for connection, subject in ((self._small, root), (self._bulk, bulk(root)))
        )
        for inbox in self._inboxes:
            await inbox.open()
        self._bulk.on_lost(self._on_bulk_lost)

    def _all_receivers(self) -> tuple[ReplyInbox | Subscription[Any], ...]:
        return (*self._inboxes, *self._receivers)

    async def _on_bulk_lost(self) -> None:
        for receiver in self._all_receivers():
            receiver.connection_lost()

    def _on_failed(self, error: TransportError) -> None:
        if self._failure:
            return
        log.error("transport_failed", reason=str(error))
        self._failure = error
        self._failed.set()
        for receiver in self._all_receivers():
            receiver.fail(error)

    def _on_sweeper_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._on_failed(TransportError(f"overdue parts were not handled: {error!r}"))

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            for receiver in self._all_receivers():
                receiver.expire(loop.time())


def _failure_headers(error: PipelineError) -> bytes:
    return header_block({FAILURE_HEADER: msgspec.json.encode(error.to_failure()).decode()})
