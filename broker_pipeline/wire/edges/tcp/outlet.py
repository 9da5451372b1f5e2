"""The sending end of one connection: a hello, then headers and payloads, from where they are to the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from broker_pipeline.errors import EdgeFullError, EdgeLostError
from broker_pipeline.messages.edges import TcpOffer
from broker_pipeline.security.tls_failures import tls_failure
from broker_pipeline.wire.edges.tcp.identity import check_certificate
from broker_pipeline.wire.edges.tcp.layout import (
    CHANNELS,
    WELCOME_BYTES,
    Header,
    first_number,
    pack_hello,
    unpack_welcome,
)
from broker_pipeline.wire.edges.tcp.sockets import DEAD_AFTER_S, set_options

MAX_UNSENT_BYTES = 64 * 2**20
"""So much may wait for its turn on a connection; what comes then takes NATS."""
_SLICE_BYTES = 512 * 1024
"""What is written, and encrypted, without a pause for whatever else the event loop has to do."""


class Outlet(asyncio.Protocol):
    """One connection to a listener."""

    def __init__(
        self, offer: TcpOffer, channel: int, on_ended: Callable[[EdgeLostError], None], host: str | None = None
    ) -> None:
        """`on_ended` hears of the end, by whatever reason; `host` is whose certificate it has to be."""
        loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = loop.create_future()
        """Done once the connection stands; a loop may say so a moment after it has made it."""
        self.welcome: asyncio.Future[str] = loop.create_future()
        """The edge's name, or `EdgeLostError`."""
        self._offer, self._channel, self._on_ended, self._host = offer, channel, on_ended, host
        self._answer = b""
        self._next_number = first_number(channel)
        self._turn = asyncio.Lock()
        self._unsent_bytes = 0
        self._has_room = asyncio.Event()
        self._error: EdgeLostError | None = None

    async def send(self, pieces: Sequence[memoryview | bytes], num_bytes: int) -> int:
        """Send a payload, all `pieces` in a row, and return its number; the kernel, or a cipher, has it all then.

        Raises `EdgeFullError` when too much waits for its turn, `EdgeLostError`. Cancelled in the middle of a payload,
        it ends the connection: what would follow could not be told from it.
        """
        if self._unsent_bytes + num_bytes > MAX_UNSENT_BYTES and self._unsent_bytes:
            raise EdgeFullError(f"{self._unsent_bytes} bytes wait to be sent on channel {self._channel} of an edge")
        self._unsent_bytes += num_bytes
        try:
            async with self._turn:
                return await self._send_now(pieces, num_bytes)
        finally:
            self._unsent_bytes -= num_bytes

    async def _send_now(self, pieces: Sequence[memoryview | bytes], num_bytes: int) -> int:
        number = self._next_number
        self._next_number += len(CHANNELS)
        try:
            async with asyncio.timeout(None) as patience:
                for buffers in _slices((Header(number, num_bytes).pack(), *pieces)):
                    self._check()
                    self._transport.writelines(buffers)
                    patience.reschedule(asyncio.get_running_loop().time() + DEAD_AFTER_S)
                    await asyncio.sleep(0)
                    await self._has_room.wait()
        except TimeoutError as error:
            self.abort(EdgeLostError(f"the receiver took nothing for {DEAD_AFTER_S} s"))
            raise self._lost() from error
        except asyncio.CancelledError:
            self.abort(EdgeLostError("a payload was given up in the middle"))
            raise
        self._check()
        return number

    def close(self) -> None:
        """End when what was sent has gone."""
        self._error = self._error or EdgeLostError("the edge was closed")
        self._transport.close()

    def abort(self, error: EdgeLostError) -> None:
        """End at once."""
        self._error = self._error or error
        self._transport.abort()

    def _check(self) -> None:
        if self._error is not None:
            raise self._lost()

    def _lost(self) -> EdgeLostError:
        return EdgeLostError(str(self._error))

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)  # uvloop's encrypted ones are none
        set_options(transport)
        # So that `_has_room` says: everything has gone. Encrypted ones pause at this limit, not only above it; what
        # they keep are bytes of their own.
        self._transport.set_write_buffer_limits(high=1 if self._offer.certificate else 0, low=0)
        self.resume_writing()
        self.connected.set_result(None)
        try:
            if self._offer.certificate:
                check_certificate(transport.get_extra_info("ssl_object"), self._offer.certificate, self._host)
        except EdgeLostError as error:  # whoever that is, hears no token
            self.abort(error)
        else:
            self._transport.write(pack_hello(self._offer.token, self._channel))

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._answer += data
        if len(self._answer) > WELCOME_BYTES:
            self.abort(EdgeLostError("the listener says more than an edge's does"))
        elif len(self._answer) == WELCOME_BYTES:
            try:
                self.welcome.set_result(unpack_welcome(self._answer))
            except EdgeLostError as error:
                self.abort(error)

    def pause_writing(self) -> None:  # noqa: D102
        self._has_room.clear()

    def resume_writing(self) -> None:  # noqa: D102
        self._has_room.set()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        self._error = self._error or EdgeLostError(self._reason_of(error))
        self._has_room.set()
        if not self.welcome.done():
            self.welcome.set_exception(self._error)
            self.welcome.exception()  # whoever waits hears it; nobody has to
        self._on_ended(self._error)

    def _reason_of(self, error: Exception | None) -> str:
        if error is not None and (refusal := tls_failure(error, "the receiver")):
            return refusal.message
        if error is None and not self.welcome.done():
            return "the receiver closed the connection at once: it refuses the token, or this host's certificate"
        return f"the receiver has gone: {error or 'it closed the connection'}"


def _slices(pieces: Sequence[memoryview | bytes]) -> list[list[memoryview]]:
    """Return the concatenation of `pieces` in lists of buffers, each of about `_SLICE_BYTES` in all."""
    slices: list[list[memoryview]] = [[]]
    num_bytes = 0
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _SLICE_BYTES):
            buffer = view[start : start + _SLICE_BYTES]
            if num_bytes + len(buffer) > _SLICE_BYTES:
                slices.append([])
                num_bytes = 0
            slices[-1].append(buffer)
            num_bytes += len(buffer)
    return slices
