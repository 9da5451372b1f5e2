"""Two connections to a NATS server, used as one link.

    publish                                                                    listen
    size ≤ 64 KiB ──────────────► small connection ──► subject ────────► small connection ─┐
          └ larger ─► parts ────► bulk connection ───► bulk.subject ───► bulk connection ──┴─► join ─► receiver

A decode step's messages do not wait behind a prefill chunk's, neither at the sender nor at the receiver, since each
side keeps large messages on a connection of their own. Between the two there is no order; on each there is.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager

from broker_pipeline.errors import PayloadTooLargeError, PipelineError, TransportError
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.subjects import REPLIES, bulk
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.incoming import IncomingEdges
from broker_pipeline.wire.link import BARRIER_TIMEOUT_S, Link, Receiver
from broker_pipeline.wire.nats.connection import NatsConnection, open_connection
from broker_pipeline.wire.nats.jetstream import JetStream
from broker_pipeline.wire.nats.listener import NatsListener
from broker_pipeline.wire.nats.message import header_block
from broker_pipeline.wire.nats.parts import cut, edge_headers, part_bytes, whole_bytes, whole_pieces
from broker_pipeline.wire.nats.reply_inbox import Expected, ReplyInbox, ReplyListener, failure_headers

BULK_BYTES = 64 * 1024
"""Messages of more bytes than this take the bulk connection."""
_SWEEP_S = 0.5


class NatsLink(Link):
    """The link that is always there, which also carries requests. Made by `NatsLink.open`."""

    small: NatsConnection
    bulk: NatsConnection
    _reply_root: str

    def __init__(self, max_message_bytes: int) -> None:
        """See `open`, which also connects."""
        self.max_message_bytes = max_message_bytes
        self.edges = IncomingEdges()
        """Where payloads are that did not come with their metadata."""
        self._inbox = ReplyInbox(max_message_bytes)
        self._failure: asyncio.Future[TransportError] = asyncio.get_running_loop().create_future()
        self._message_prefix = secrets.token_hex(8)
        self._message_numbers = itertools.count()
        self._cut_turn = asyncio.Lock()
        self.on_lost(self._inbox.fail)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, name: str, timeout_s: float, max_message_bytes: int, credentials: Credentials | None = None
    ) -> AsyncIterator[NatsLink]:
        """Connect; on leaving, send what is unsent and close. Raises what `open_connection` raises."""
        link = cls(max_message_bytes)
        async with AsyncExitStack() as stack:
            link.small, link.bulk = [
                await stack.enter_async_context(
                    open_connection(url, each, on_failed=link._fail, timeout_s=timeout_s, credentials=credentials)
                )
                for each in (name, f"{name}-bulk")
            ]
            root = link._reply_root = f"{link.small.inbox_prefix}.{REPLIES}.{secrets.token_hex(8)}"
            for connection, subject in ((link.small, root), (link.bulk, bulk(root))):
                await stack.enter_async_context(
                    connection.listen(f"{subject}.*", ReplyListener(link._inbox, link.edges))
                )
            await link.barrier()
            sweeper = asyncio.create_task(link._sweep(), name=f"{name}-parts")
            sweeper.add_done_callback(link._on_sweeper_done)
            try:
                yield link
            finally:
                sweeper.cancel()
                await asyncio.wait([sweeper])

    @property
    def is_connected(self) -> bool:
        """Whether both connections stand at this moment."""
        return self.small.is_connected and self.bulk.is_connected

    @property
    def local_host(self) -> str:
        """Address of this host from which it reaches the server."""
        return self.small.socket.local_host

    @property
    def num_reconnects(self) -> int:
        """How often one of the connections was lost and made again."""
        return self.small.num_reconnects + self.bulk.num_reconnects

    # --- sending ---

    async def publish(self, subject: str, frame: Frame, reply: str = "") -> None:
        """Send a message on the connection for its size; see `Link`."""
        num_bytes = whole_bytes(frame)
        if num_bytes > self.max_message_bytes:
            raise PayloadTooLargeError(
                f"{num_bytes} bytes for {subject}; messages of up to {self.max_message_bytes} are sent"
            )
        if num_bytes > BULK_BYTES:
            # One large message after the other: interleaved, all of them would arrive as late as the last.
            async with self._cut_turn:
                await self._send(self.bulk, bulk(subject), frame, num_bytes, reply)
        elif num_bytes <= part_bytes(self.small.max_payload):
            await self._publish_whole(self.small, subject, frame, reply)
        else:
            await self._send(self.small, subject, frame, num_bytes, reply)

    async def _send(self, connection: NatsConnection, subject: str, frame: Frame, num_bytes: int, reply: str) -> None:
        size = part_bytes(connection.max_payload)
        if num_bytes <= size:
            await self._publish_whole(connection, subject, frame, reply)
            return
        for number, part in enumerate(cut(frame, size, f"{self._message_prefix}-{next(self._message_numbers)}")):
            if number:
                await asyncio.sleep(0)  # lets the first parts leave while the next are prepared
            await connection.publish(subject, *part.pieces, headers=part.headers, reply=reply)

    async def _publish_whole(self, connection: NatsConnection, subject: str, frame: Frame, reply: str) -> None:
        headers = header_block(edge_headers(frame)) if frame.edge is not None else b""
        await connection.publish(subject, *whole_pieces(frame), headers=headers, reply=reply)

    def expect(self, frame: Frame) -> AbstractContextManager[Expected]:
        """Give a subject for the answer to `frame`, and the future that it arrives in; for as long as the context."""
        # That nobody listens, the server says only to an inbox on the connection that the request came over.
        is_bulk = whole_bytes(frame) > BULK_BYTES
        return self._inbox.expect(bulk(self._reply_root) if is_bulk else self._reply_root)

    def refuse(self, reply: str, error: PipelineError) -> None:
        """Answer a request with an error, without waiting: raises `TransportError` also when far too much is unsent."""
        self.small.publish_now(reply, headers=failure_headers(error))

    # --- receiving ---

    @asynccontextmanager
    async def listen(self, subject: str, receiver: Receiver) -> AsyncIterator[None]:
        """Listen on both connections; see `Link`."""
        async with (
            self.small.listen(subject, NatsListener(receiver, self.edges)),
            self.bulk.listen(bulk(subject), NatsListener(receiver, self.edges)),
        ):
            yield

    async def barrier(self, timeout_s: float = BARRIER_TIMEOUT_S) -> None:
        """Return when the server has processed everything that both connections sent before; outlasts a reconnect."""
        await asyncio.gather(self.small.barrier(timeout_s), self.bulk.barrier(timeout_s))

    # --- life ---

    def on_lost(self, listener: Callable[[TransportError], None]) -> None:
        """Call `listener` once when a connection is closed for good; see `Link`."""
        self._failure.add_done_callback(lambda failure: listener(failure.result()))

    def on_reconnected(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever one of the connections is back: what was in flight may be gone."""
        self.small.on_reconnected(listener)
        self.bulk.on_reconnected(listener)

    def jetstream(self, *, for_bulk: bool, timeout_s: float) -> JetStream:
        """Return JetStream on the small connection, or on the bulk one."""
        return JetStream((self.bulk if for_bulk else self.small).client, timeout_s=timeout_s)

    def _fail(self, error: TransportError) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    def _on_sweeper_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            self._fail(TransportError(f"overdue parts were not handled: {error!r}"))

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            for connection in (self.small, self.bulk):
                connection.socket.end_where_unreachable()
                for receiver in tuple(connection.receivers.values()):
                    receiver.expire(loop.time())
