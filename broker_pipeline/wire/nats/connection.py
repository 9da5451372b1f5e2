"""One connection to NATS that fails loudly.

What nats-py 2.16 does that these files guard against (each was reproduced):

* `flush()` writes PING ahead of queued SUB and PUB, so that it proves nothing about them: `barrier` publishes to an
  inbox of its own connection and waits for that message to come back (see `echo`).
* While disconnected, publishes are kept and silently lost: with `pending_size=-1` they raise instead, and so does
  `publish` here, which goes past nats-py (see `socket`) and waits when too much is unsent.
* A message whose payload and headers together exceed `max_payload` makes the server close the connection for good,
  without an exception for the sender: the size is checked here before anything is sent.
* Connections closed for good and exceptions in callbacks are told to callbacks only: they become typed errors (see
  `connection_state`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import lru_cache

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from broker_pipeline.errors import ConfigurationError, PayloadTooLargeError, TransportError
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.wire.link import BARRIER_TIMEOUT_S
from broker_pipeline.wire.nats.address import server_addresses, without_credentials
from broker_pipeline.wire.nats.connection_state import NATS_ERRORS, ConnectionState
from broker_pipeline.wire.nats.echo import Echo
from broker_pipeline.wire.nats.message import NatsMessage, Receiver, header_block
from broker_pipeline.wire.nats.socket import MAX_UNSENT_BYTES, Buffer, NatsSocket

RECONNECT_WAIT_S = 0.05
PING_INTERVAL_S = 0.5
"""So often there is something to acknowledge: a connection that leads nowhere is found out by the kernel."""
_MAX_UNANSWERED_PINGS = 20
_SUBJECT = re.compile(r"[^\s\0]+")


class NatsConnection:
    """A nats-py client and what this process has to know about it. Made by `open_connection`."""

    def __init__(
        self, name: str, on_failed: Callable[[TransportError], None], credentials: Credentials | None = None
    ) -> None:
        """`on_failed` is told once when the connection is closed for good, or a receiver has a bug."""
        self._options = credentials.nats_options if credentials else {}
        self.name = name
        self.client = Client()
        self.receivers: dict[bytes, Receiver] = {}
        """Who gets messages, by sid. They stay through reconnects, as nats-py's subscriptions do."""
        self.inbox = ""
        """Root of subjects that only this connection uses."""
        self._state = ConnectionState(name, self.client, self._on_lost, on_failed)
        self._echo = Echo(self.client)
        self.socket = NatsSocket(self.receivers, self._state.fail_unhandled, must_encrypt=credentials is not None)
        self.client._transport = self.socket  # noqa: SLF001 - nats-py makes one of its own where there is none

    @property
    def is_connected(self) -> bool:
        """Whether the server can be reached at this moment."""
        return bool(self.client.is_connected) and self.socket.is_open

    @property
    def max_payload(self) -> int:
        """Most bytes of payload and headers together that the server takes; may change with a reconnect."""
        return int(self.client.max_payload)

    @property
    def inbox_prefix(self) -> str:
        """What this client's inboxes begin with: the server lets nobody else listen there."""
        return self.client._inbox_prefix.decode()  # noqa: SLF001

    @property
    def num_reconnects(self) -> int:
        """How often the connection was lost and made again."""
        return self._state.num_reconnects

    async def publish(self, subject: str, *pieces: Buffer, headers: bytes = b"", reply: str = "") -> None:
        """Write one message, whose payload is all `pieces` in a row; they are copied before this returns.

        `headers` is what `header_block` returns. Waits while too much is unsent. Raises `PayloadTooLargeError` before
        anything is sent, `TransportError` when the server is not connected. That this returns does not mean that the
        server has the message.
        """
        if not self.socket.has_room:
            await self._make_room(subject)
        self._send(subject, pieces, headers, reply)

    def publish_now(self, subject: str, *pieces: Buffer, headers: bytes = b"", reply: str = "") -> None:
        """Like `publish`, for small messages that must not wait: with far too much unsent, this raises as well."""
        if self.socket.unsent_bytes > 2 * MAX_UNSENT_BYTES:
            raise TransportError(f"{self.name} has too much to send; nothing was sent to {subject}")
        self._send(subject, pieces, headers, reply)

    def _send(self, subject: str, pieces: tuple[Buffer, ...], headers: bytes, reply: str) -> None:
        num_bytes = sum(map(len, pieces))
        size = num_bytes + len(headers)
        if size > self.max_payload:
            raise PayloadTooLargeError(
                f"{size} bytes for {subject}, but the server takes {self.max_payload} (its max_payload)"
            )
        if not _is_subject(subject) or (reply and not _is_subject(reply)):
            raise TransportError(f"{self.name}: {subject!r} or {reply!r} is no subject")
        if not self.client.is_connected:
            raise self._not_sent(subject)
        try:
            self.socket.send(subject, reply, headers, pieces, num_bytes)
        except ConnectionResetError as error:
            raise self._not_sent(subject) from error

    @asynccontextmanager
    async def listen(self, subject: str, receiver: Receiver) -> AsyncIterator[None]:
        """Give `receiver` the messages of a subject; they are sure to come only after the next `barrier`."""

        async def on_early_message(msg: Msg) -> None:
            headers = header_block(msg.headers) if msg.headers else b""
            receiver.on_message(NatsMessage(msg.subject, msg.reply, headers, msg.data))

        try:
            subscription = await self.client.subscribe(subject, cb=on_early_message)
        except NATS_ERRORS as error:
            raise TransportError(f"{self.name} cannot subscribe to {subject}: {error}") from error
        sid = b"%d" % subscription._id  # noqa: SLF001 - what the server names a message's subscription by
        self.receivers[sid] = receiver
        try:
            yield
        finally:
            del self.receivers[sid]
            with suppress(*NATS_ERRORS):  # a connection that is gone asks for none anyway
                await subscription.unsubscribe()

    async def barrier(self, timeout_s: float = BARRIER_TIMEOUT_S) -> None:
        """Return when the server has processed everything that this connection sent before, subscriptions too.

        Outlasts a reconnect (subscriptions are made again with it, messages in flight are not).
        """
        async with self._patience(timeout_s):
            while not self.client.is_closed:
                await self._state.connected.wait()
                if await self._echo.comes_back():
                    return
                await asyncio.sleep(RECONNECT_WAIT_S)
        raise TransportError(f"{self.name} is closed")

    def on_reconnected(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the connection is back."""
        self._state.reconnect_listeners.append(listener)

    async def _make_room(self, subject: str) -> None:
        """Wait until the server has taken what is unsent; a sender that waits must learn when that is lost."""
        async with self._patience(BARRIER_TIMEOUT_S):
            if not await self.socket.wait_room():
                raise self._not_sent(subject)

    @asynccontextmanager
    async def _patience(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise TransportError(
                f"{self.name}: the server has not taken what was sent within {timeout_s:g} s"
            ) from error

    def _on_lost(self) -> None:
        self._echo.lose()
        for receiver in tuple(self.receivers.values()):
            receiver.on_lost()

    def _not_sent(self, subject: str) -> TransportError:
        state = "is closed" if self.client.is_closed else "is reconnecting"
        return TransportError(f"{self.name} {state}; nothing was sent to {subject}")

    # --- life ---

    async def _connect(self, servers: list[str], timeout_s: float) -> None:
        shown = without_credentials(",".join(servers))
        try:
            async with asyncio.timeout(timeout_s):
                await self.client.connect(
                    servers,
                    name=self.name,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type] # only slept
                    max_reconnect_attempts=-1,
                    pending_size=-1,
                    ping_interval=PING_INTERVAL_S,  # type: ignore[arg-type] # only slept
                    max_outstanding_pings=_MAX_UNANSWERED_PINGS,
                    **self._state.callbacks(),
                    **self._options,
                )
        except TimeoutError as error:
            raise TransportError(
                f"no NATS server at {shown} within {timeout_s:g} s "
                f"({self._state.last_error or 'no answer'}); is it running, and is the address right?"
            ) from error
        except nats.errors.Error as error:
            raise ConfigurationError(f"{shown}: {error}", field="nats_url") from error
        self._state.is_opening = False
        self._state.connected.set()
        self.inbox = self.client.new_inbox()
        await self._echo.open(f"{self.inbox}.echo")
        await self.barrier()

    async def _close(self) -> None:
        self._state.is_closing = True
        with suppress(TransportError):
            if self.is_connected:
                await self.barrier(timeout_s=2.0)
        self._echo.lose()
        with suppress(*NATS_ERRORS):
            await self.client.close()


@asynccontextmanager
async def open_connection(
    url: str,
    name: str,
    *,
    on_failed: Callable[[TransportError], None],
    timeout_s: float = 10.0,
    credentials: Credentials | None = None,
) -> AsyncIterator[NatsConnection]:
    """Connect to NATS; on leaving, send what is unsent and close.

    `url` may name several servers of a cluster, separated by commas. Raises `TransportError` when none answers
    within `timeout_s` seconds, `SubjectDeniedError` when the server refuses the credentials, `CertificateError` where
    a certificate is not good, `ConfigurationError` for what is no address.
    """
    servers = server_addresses(url)
    connection = NatsConnection(name, on_failed, credentials)
    try:
        await connection._connect(servers, timeout_s)  # noqa: SLF001 - the one way to make one
        yield connection
    finally:
        await connection._close()  # noqa: SLF001


@lru_cache(maxsize=1024)
def _is_subject(text: str) -> bool:
    """Whether a text may be written into a line of the protocol."""
    return bool(_SUBJECT.fullmatch(text))
