"""Typed messages with tensors between processes.

    publish / request ── encode ──► link ──► … ──► link ── decode ──► subscribe: async for

Delivery is NATS core's: at most once. What is in flight at a reconnect may be gone, so that requests have a timeout
and microbatches a deadline. Nothing is gone in silence as long as the process lives: see `Subscription` for slow
readers, `Transport.wait_failed` for connections lost for good.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog

from broker_pipeline.errors import (
    NoResponderError,
    PartError,
    PipelineError,
    RequestTimeoutError,
    SlowConsumerError,
    TransportError,
)
from broker_pipeline.messages.workers import TransportCounts
from broker_pipeline.tracing.message_spans import record_received, record_sent
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.codec import decode, encode
from broker_pipeline.wire.nats.jetstream import JetStream
from broker_pipeline.wire.nats.link import NatsLink
from broker_pipeline.wire.received import Body, Received
from broker_pipeline.wire.room import Room
from broker_pipeline.wire.subscription import OnDropped, OnMalformed, Subscription
from broker_pipeline.wire.wire_tensor import WireTensor

__all__ = ["Received", "Subscription", "Transport"]

log = structlog.get_logger()

MAX_MESSAGE_BYTES = 256 * 2**20
MAX_PENDING_BYTES = 256 * 2**20


class Transport:
    """What a process says and hears. Made by `Transport.open`."""

    def __init__(self, link: NatsLink) -> None:
        """Speak over `link`."""
        self.link = link
        self._subscriptions: set[Subscription[Any]] = set()
        self._lost: Counter[type[PipelineError]] = Counter()
        self._failure: asyncio.Future[TransportError] = asyncio.get_running_loop().create_future()
        link.on_lost(self._on_lost)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        nats_url: str,
        *,
        name: str,
        connect_timeout_s: float = 10.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> AsyncIterator[Transport]:
        """Connect; on leaving, send what is unsent and close.

        `name` is shown in the server's monitoring. Raises `TransportError` when no server answers in time.
        """
        async with NatsLink.open(
            nats_url, name=name, timeout_s=connect_timeout_s, max_message_bytes=max_message_bytes
        ) as link:
            yield cls(link)

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
        await self.link.publish(subject, frame)
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
        with self.link.expect(frame) as (reply, answer):
            try:
                async with asyncio.timeout(timeout_s):
                    await self.link.publish(subject, frame, reply)
                    record_sent(body, subject, started, encoded, frame.num_payload_bytes)
                    message = await answer
            except TimeoutError as error:
                raise RequestTimeoutError(f"no answer from {subject} within {timeout_s:g} s") from error
            except NoResponderError as error:
                raise NoResponderError(f"nobody listens on {subject}") from error
        arrived = tracer.now()
        answer_body, answer_tensors = decode(message.metadata, message.payload, reply_type)
        record_received(answer_body, reply, arrived, message.num_bytes)
        return Received(reply, answer_body, answer_tensors, "", message.num_bytes, self)

    def refuse(self, reply: str, error: PipelineError) -> None:
        """Answer a request with an error, without waiting: raises `TransportError` also when far too much is unsent."""
        self.link.refuse(reply, error)

    # --- receiving ---

    @asynccontextmanager
    async def subscribe(
        self,
        subject: str,
        body_type: type[Body],
        *,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        on_malformed: OnMalformed | None = None,
        on_dropped: OnDropped[Body] | None = None,
    ) -> AsyncIterator[Subscription[Body]]:
        """Listen on a subject (wildcards allowed) while the context is open.

        Entering it returns when the server has the subscription. At most `max_pending_bytes` wait to be read; what
        comes beyond is dropped, and said: to `on_dropped(error, body)` (the body where it could be read), or, without
        it, by `SlowConsumerError` from the iteration. A message that breaks the contract is logged, counted, told to
        `on_malformed(error, reply)`, and answered when it is a request; the iteration never sees it.
        """
        if self._failure.done():
            raise self._failure.result()
        room = Room(max_pending_bytes, self.link.max_message_bytes)
        subscription = Subscription(
            subject, body_type, self, room, self._lost, on_malformed=on_malformed, on_dropped=on_dropped
        )
        self._subscriptions.add(subscription)
        try:
            async with self.link.listen(subject, subscription):
                await self.link.barrier()
                yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.end()

    # --- state ---

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent at this moment."""
        return self.link.is_connected

    @property
    def counts(self) -> TransportCounts:
        """What the transport has got over so far."""
        num_dropped, num_incomplete = self._lost[SlowConsumerError], self._lost[PartError]
        return TransportCounts(
            num_reconnects=self.link.num_reconnects,
            num_dropped=num_dropped,
            num_malformed=self._lost.total() - num_dropped - num_incomplete,
            num_incomplete=num_incomplete,
        )

    def add_reconnect_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a connection that was lost is back: what was in flight may be gone."""
        self.link.on_reconnected(listener)

    async def wait_failed(self) -> None:
        """Wait for the end: never returns, raises `TransportError` when a connection is closed for good."""
        raise await asyncio.shield(self._failure)

    def jetstream(self, *, for_bulk: bool = False, timeout_s: float = 5.0) -> JetStream:
        """Return JetStream on the small connection, or, for much at once, on the bulk one."""
        return self.link.jetstream(for_bulk=for_bulk, timeout_s=timeout_s)

    def _on_lost(self, error: TransportError) -> None:
        log.error("transport_failed", reason=str(error))
        self._failure.set_result(error)
        for subscription in self._subscriptions:
            subscription.end(error)
