"""Typed messages with tensors between processes.

    publish / request ── encode ──┬─► link ──► … ──► link ──┬── decode ──► subscribe: async for
                                  └─► edge ── payload ─► edge ┘     where one stands: see `wire.edges`

Delivery is NATS core's: at most once. What is in flight at a reconnect may be gone, so that requests have a timeout
and microbatches a deadline. Nothing is gone in silence as long as the process lives: see `Subscription` for slow
readers, `Transport.wait_failed` for connections lost for good.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import structlog

from broker_pipeline import subjects
from broker_pipeline.errors import (
    NoResponderError,
    PartError,
    PipelineError,
    RequestTimeoutError,
    SlowConsumerError,
    TransportError,
)
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer, PeerLost
from broker_pipeline.messages.workers import TransportCounts
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.tracing.message_spans import record_received, record_sent
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.codec import Frame, decode, encode
from broker_pipeline.wire.edges.kinds import edge_dialers, edge_servers
from broker_pipeline.wire.edges.outgoing import OutgoingEdges
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.edges.tcp.identity import EdgeIdentity
from broker_pipeline.wire.nats.jetstream import JetStream
from broker_pipeline.wire.nats.link import NatsLink
from broker_pipeline.wire.received import Body, Received
from broker_pipeline.wire.room import Room
from broker_pipeline.wire.subscription import OnDropped, OnMalformed, Subscription
from broker_pipeline.wire.wire_tensor import WireTensor

__all__ = ["Received", "Subscription", "Transport"]

log = structlog.get_logger()

_ASK_S = 5.0
_MAX_LOST_PEERS = 256
MAX_MESSAGE_BYTES = 256 * 2**20
MAX_PENDING_BYTES = 256 * 2**20


class Transport:
    """What a process says and hears. Made by `Transport.open`."""

    def __init__(self, link: NatsLink) -> None:
        """Speak over `link`."""
        self.link = link
        self.is_guarded = False
        """Whether the server knows who may do what."""
        self._subscriptions: set[Subscription[Any]] = set()
        self._edges: OutgoingEdges | None = None
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
        credentials: Credentials | None = None,
    ) -> AsyncIterator[Transport]:
        """Connect; on leaving, send what is unsent and close.

        `name` is shown in the server's monitoring. Raises `TransportError` when no server answers in time.
        """
        async with NatsLink.open(
            nats_url,
            name=name,
            timeout_s=connect_timeout_s,
            max_message_bytes=max_message_bytes,
            credentials=credentials,
        ) as link:
            transport = cls(link)
            transport.is_guarded = credentials is not None
            yield transport

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
        await self.link.publish(subject, await self._carry(subject, frame))
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
        try:
            async with asyncio.timeout(timeout_s):
                carried = await self._carry(subject, frame)
                with self.link.expect(carried) as (reply, answer):
                    await self.link.publish(subject, carried, reply)
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

    def place(self, subject: str, num_bytes: int) -> memoryview | None:
        """Return room for the payload of a message to `subject` that is yet to be made, or None. Thread-safe.

        A tensor at its beginning, sent first in a message of up to `num_bytes`, is not copied any more.
        """
        return None if self._edges is None else self._edges.place(subject, num_bytes)

    async def _carry(self, subject: str, frame: Frame) -> Frame:
        """Let the payload take an edge where there is one; what is too large the link refuses whole."""
        if self._edges is None or len(frame.metadata) + frame.num_payload_bytes > self.link.max_message_bytes:
            return frame
        return await self._edges.carry(subject, frame)

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

    @asynccontextmanager
    async def use_edges(self, root: str, settings: EdgeSettings) -> AsyncIterator[None]:
        """Send payloads by edges, and offer edges as the worker with this root of subjects, until the context ends."""
        if not settings.kinds:
            yield
            return
        lost_peers: asyncio.Queue[str] = asyncio.Queue(_MAX_LOST_PEERS)

        def note_lost(root: str) -> None:
            with suppress(asyncio.QueueFull):  # the conductor has heartbeats as well
                lost_peers.put_nowait(root)

        servers = edge_servers(settings, self.link.edges.add, self.link.local_host)
        async with (
            self.link.edges.serve(servers, note_lost),
            self.subscribe(subjects.edges(root), EdgeAsk, on_dropped=_log_drop) as asks,
            asyncio.TaskGroup() as tasks,
        ):
            background = [
                tasks.create_task(self._answer_asks(asks), name="edges"),
                tasks.create_task(self._report_lost(lost_peers, subjects.lost_peers_of(root)), name="lost peers"),
            ]
            ask = partial(self._ask_for_edges, settings.identity if settings.is_encrypted else None)
            edges = self._edges = OutgoingEdges(ask, list(edge_dialers(settings)), root, note_lost)
            self.add_reconnect_listener(edges.renew)
            try:
                yield
            finally:
                self._edges = None
                for task in background:
                    task.cancel()
                await edges.close()

    async def _ask_for_edges(self, identity: EdgeIdentity | None, root: str, ask: EdgeAsk) -> EdgeOffer:
        if identity is not None:
            ask = msgspec.structs.replace(ask, certificate=identity.fingerprint)
        answer = await self.request(subjects.edges(root), ask, reply_type=EdgeOffer, timeout_s=_ASK_S)
        return answer.body

    async def _answer_asks(self, asks: Subscription[EdgeAsk]) -> None:
        with suppress(TransportError):  # that the connection is gone for good, `wait_failed` says
            async for message in asks:
                try:
                    await message.respond(self.link.edges.offer(message.body))
                except TransportError as error:
                    log.warning("offer_lost", reason=error.message)

    async def _report_lost(self, peers: asyncio.Queue[str], subject: str) -> None:
        """Say whose edges ended: the conductor asks whether they are still there."""
        while True:
            try:
                await self.publish(subject, PeerLost(root=await peers.get()))
            except TransportError as error:
                log.info("lost_peer_not_reported", reason=error.message)

    # --- state ---

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent at this moment."""
        return self.link.is_connected

    @property
    def counts(self) -> TransportCounts:
        """What the transport has got over so far."""
        num_dropped, num_incomplete = self._lost[SlowConsumerError], self._lost[PartError]
        counts = TransportCounts(
            num_reconnects=self.link.num_reconnects,
            num_dropped=num_dropped,
            num_malformed=self._lost.total() - num_dropped - num_incomplete,
            num_incomplete=num_incomplete,
        )
        if self._edges is None:
            return counts
        return msgspec.structs.replace(
            counts,
            carried=dict(self._edges.carried),
            num_edges_lost=self._edges.num_lost,
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


def _log_drop(error: SlowConsumerError, _: object) -> None:
    log.warning("edge_ask_dropped", reason=error.message)
