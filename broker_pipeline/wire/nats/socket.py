"""The socket of a connection to NATS, shared by nats-py and by messages that go past it.

    nats-py ◄────── read ─ all else ──┐                        nats-py ── write ──┐
    (connects, authenticates, pings,  ├── splitter ◄── socket                     ├──► socket
    reconnects, JetStream)            │                        publish ── send ───┘
    receivers ◄─ on_message ──────────┘                                  (copied once)

nats-py 2.16 takes a message through its parser's buffer, a dict of headers, a queue and a task of its own on the way
in, and through a list and another task on the way out, and copies it four to six times. What it is good at is kept.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import ParseResult

import nats.errors
import structlog
from nats.aio.transport import Transport

from broker_pipeline.process.dead_connections import CONNECT_TIMEOUT_S, TCP_OPTIONS, UNACKNOWLEDGED_S, unacknowledged_s
from broker_pipeline.security.loopback import is_loopback
from broker_pipeline.security.tls_failures import NotEncryptedError
from broker_pipeline.wire.nats.message import Receiver
from broker_pipeline.wire.nats.message_splitter import MessageSplitter

log = structlog.get_logger()

MAX_UNSENT_BYTES = 4 * 2**20
_FLUSH_BYTES = 64 * 1024
_CLOSE_TIMEOUT_S = 2.0
_DEFAULT_PORT = 4222
_END = b"\r\n"

Buffer = bytes | bytearray | memoryview


class NatsSocket(Transport):
    """What nats-py takes for its transport."""

    def __init__(
        self, receivers: Mapping[bytes, Receiver], on_failed: Callable[[Exception], None], *, must_encrypt: bool = False
    ) -> None:
        """`on_failed` is told what a receiver (by sid) raised; that is a bug, and its connection ends.

        With `must_encrypt`, nothing is said to a server of another host that does not encrypt.
        """
        self._must_encrypt = must_encrypt
        self._receivers = receivers
        self._on_failed = on_failed
        self._link: _Link | None = None
        self._waiting: tuple[_Link, float] | None = None
        """The connection that was seen waiting for an acknowledgement, and since when it has got none."""

    # --- messages past nats-py ---

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that may be written to; nats-py may not have introduced itself yet."""
        return self._link is not None and self._link.is_open

    @property
    def has_room(self) -> bool:
        """Whether less than `MAX_UNSENT_BYTES` wait for the kernel to take them."""
        return self._link is None or self._link.has_room

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait for the kernel to take them."""
        return self._link.unsent_bytes if self._link and self._link.is_open else 0

    @property
    def local_host(self) -> str:
        """Address of this end of the connection."""
        return str(self._open_link().transport.get_extra_info("sockname")[0])

    async def wait_room(self) -> bool:
        """Wait until there is room; return whether the connection is still the same and stands."""
        link = self._link
        if link is None:
            return False
        await link.room.wait()
        return link is self._link and link.is_open

    def send(self, subject: str, reply: str, headers: bytes, pieces: Sequence[Buffer], num_bytes: int) -> None:
        """Write one message whose payload of `num_bytes` is all `pieces` in a row; they are copied once.

        Raises `ConnectionResetError` when there is no connection. The caller answers for subjects and sizes.
        """
        link = self._open_link()
        if headers:
            line = f"HPUB {subject} {reply} {len(headers)} {len(headers) + num_bytes}\r\n"
        else:
            line = f"PUB {subject} {reply} {num_bytes}\r\n"
        link.write(b"".join((line.encode(), headers, *pieces, _END)))

    def end_where_unreachable(self) -> None:
        """End the connection where nothing has been acknowledged since an earlier look at it; for a look now and then.

        Pings see to it that something is sent.
        """
        link, now = self._link, time.monotonic()
        waits_s = unacknowledged_s(link.transport.get_extra_info("socket")) if link and link.is_open else 0.0
        if link is None or not waits_s:
            self._waiting = None
        elif self._waiting is None or self._waiting[0] is not link or self._waiting[1] < now - waits_s:
            self._waiting = link, now
        elif now - self._waiting[1] >= UNACKNOWLEDGED_S:
            link.end(ConnectionAbortedError(f"nothing was acknowledged for {waits_s:.1f} s"))

    # --- nats-py's own ---

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:  # noqa: ARG002
        """Make a connection in place of the one before."""
        self.close()
        loop, host, port = asyncio.get_running_loop(), uri.hostname or "", uri.port or _DEFAULT_PORT
        async with asyncio.timeout(min(connect_timeout, CONNECT_TIMEOUT_S)):
            _, self._link = await loop.create_connection(lambda: _Link(self._receivers, self._on_failed), host, port)
        self._link.may_be_written = not self._must_encrypt or is_loopback(host)
        for name, value in TCP_OPTIONS.items():
            self.set_option(name, value)

    def set_option(self, name: int, value: int) -> None:
        """Set an option of the level IPPROTO_TCP."""
        self._open_link().transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, name, value)

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,  # noqa: ARG002
        connect_timeout: int,
    ) -> None:
        """Go on encrypted."""
        link, host = self._open_link(), uri if isinstance(uri, str) else uri.hostname
        link.flush()
        try:
            async with asyncio.timeout(connect_timeout):
                encrypted = await asyncio.get_running_loop().start_tls(
                    link.transport, link, ssl_context, server_hostname=host
                )
        except BaseException:
            link.transport.abort()
            link.connection_lost(None)  # the protocol of the handshake keeps this to itself
            raise
        if encrypted is None:
            raise ConnectionResetError("the connection was lost while encryption was agreed upon")
        link.connection_made(encrypted)
        link.may_be_written = True

    def write(self, payload: Buffer) -> None:
        """Write. What is written to a lost connection is lost; `read` and `drain` say so.

        Raises `NotEncryptedError` where that must be and is not: nats-py goes on in clear text where a server says so.
        """
        if self._link and self._link.is_open:
            if not self._link.may_be_written:
                raise NotEncryptedError("the server does not ask for TLS")
            self._link.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Write, like `write`."""
        self.write(b"".join(payload))

    async def read(self, buffer_size: int) -> bytes:
        """Return bytes that concern no receiver; none at the end of the connection."""
        return await self._link.reader.read(buffer_size) if self._link else b""

    async def readline(self) -> bytes:
        """Return a line, as while connecting."""
        return await self._link.reader.readline() if self._link else b""

    async def drain(self) -> None:
        """Wait until there is room."""
        if not self.has_room:
            await self.wait_room()
        self._open_link()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed; whoever takes nothing any more is not waited for."""
        if not self._link:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._link.closed.wait()
        except TimeoutError:
            self._link.transport.abort()
            await self._link.closed.wait()

    def close(self) -> None:
        """Close the connection, if there is one, when what is unsent has gone."""
        if self._link:
            self._link.flush()
            self._link.transport.close()

    def at_eof(self) -> bool:
        """Whether nothing more will be read."""
        return self._link is None or self._link.reader.at_eof()

    def __bool__(self) -> bool:
        """Nothing that nats-py would have to replace."""
        return True

    def _open_link(self) -> _Link:
        if self._link is None or not self._link.is_open:
            raise ConnectionResetError("the connection is closed")
        return self._link


@dataclass(slots=True, eq=False)
class _Link(asyncio.BufferedProtocol):
    """One TCP or TLS connection, from its beginning to its end.

    What is written in one turn of the event loop goes out at its end, all at once: a call of the system, and a server
    that wakes, cost more than most messages.
    """

    receivers: Mapping[bytes, Receiver]
    on_failed: Callable[[Exception], None]
    may_be_written: bool = True
    has_room: bool = False
    room: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there is room, and when the connection is lost: whoever waits has to look again."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.Transport = field(init=False)
    reader: asyncio.StreamReader = field(init=False)
    splitter: MessageSplitter = field(init=False)
    _written: list[Buffer] = field(default_factory=list)
    _written_bytes: int = 0

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        return self._written_bytes + self.transport.get_write_buffer_size()

    def write(self, content: Buffer) -> None:
        if not self._written:
            asyncio.get_running_loop().call_soon(self.flush)
        self._written.append(content)
        self._written_bytes += len(content)
        if self._written_bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        written, self._written, self._written_bytes = self._written, [], 0
        if written and self.is_open:
            self.transport.writelines(written)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES, low=MAX_UNSENT_BYTES // 2)
        self.reader = asyncio.StreamReader()
        self.reader.set_transport(transport)  # pauses it while nats-py is behind
        self.splitter = MessageSplitter(self.receivers, self.reader.feed_data)
        self.resume_writing()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self.splitter.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.splitter.took(nbytes)
        except nats.errors.ProtocolError as error:
            log.warning("nats_protocol_broken", reason=str(error.args[0]))
            self.end(error)
        except Exception as error:  # noqa: BLE001 - told to the owner, who gives up for good
            self.end(ConnectionAbortedError(f"a message was not handled: {error!r}"))
            self.on_failed(error)

    def pause_writing(self) -> None:
        self.has_room = False
        self.room.clear()

    def resume_writing(self) -> None:
        self.has_room = True
        self.room.set()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self.reader.feed_eof()
        elif not self.reader.exception():
            self.reader.set_exception(error)
        self.resume_writing()
        self.closed.set()

    def end(self, error: Exception) -> None:
        self.reader.set_exception(error)  # nats-py reads it, and connects again
        self.transport.abort()
