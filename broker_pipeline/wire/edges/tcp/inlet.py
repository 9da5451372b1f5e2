"""The receiving end of one connection: a hello, then headers and payloads, each read straight to where it belongs.

get_buffer ──► hello ──► (admitted) ──► header ──► room? ──► payload ──► header ──► …
                                                    └─ none: nothing is read until there is
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np

from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.edges import Token
from broker_pipeline.wire.edges.tcp.identity import shown_certificate, vouched_host
from broker_pipeline.wire.edges.tcp.layout import (
    HEADER_BYTES,
    HELLO_BYTES,
    Header,
    first_number,
    pack_welcome,
    unpack_hello,
)
from broker_pipeline.wire.edges.tcp.sockets import set_options


class Inflow(Protocol):
    """Whom an admitted inlet tells."""

    def begin(self, inlet: Inlet, header: Header) -> bool:
        """Take the room of a payload; False where it has to wait, and `Inlet.resume` will be called."""

    def arrive(self, header: Header, payload: memoryview) -> None:
        """Take a payload."""

    def end(self, inlet: Inlet, error: EdgeLostError | None) -> None:
        """Hear that nothing more comes: None where the sender closed after whole payloads."""


class Doorkeeper(Protocol):
    """Who lets inlets in."""

    def enter(self, inlet: Inlet) -> None:
        """Hear of a connection, of which nothing is known."""

    def hear(self, inlet: Inlet, token: Token, channel: int) -> None:
        """Hear what it said; `admit` it now or later. Raises `EdgeLostError` to send it away."""

    def leave(self, inlet: Inlet) -> None:
        """Hear of its end."""


class Inlet(asyncio.BufferedProtocol):
    """One accepted connection."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        """Ask `doorkeeper` who may send."""
        self.channel = -1
        self.certificate = ""
        """SHA-256 of the certificate that the sender shows; empty without one."""
        self.host = ""
        """Whose that is, where an authority vouches for it."""
        self.last_number = 0
        """Of the payload that came last, or is coming."""
        self.is_reading = False
        """Whether that one is coming, or waits for its room."""
        self._inflow: Inflow | None = None
        self._doorkeeper = doorkeeper
        self._error: EdgeLostError | None = None
        self._expect(memoryview(bytearray(HELLO_BYTES)), self._greet)

    def admit(self, channel: int, name: str, inflow: Inflow) -> None:
        """Answer the hello, and go on with payloads."""
        self.channel, self._inflow = channel, inflow
        self.last_number = first_number(channel) - 1
        self._transport.write(pack_welcome(name))
        self._expect_header()

    def resume(self) -> None:
        """Go on: there is room for the payload that waited for it."""
        self._read_payload()
        self._transport.resume_reading()

    def abort(self, error: EdgeLostError) -> None:
        """End at once."""
        self._error = self._error or error
        self._transport.abort()

    @property
    def reason(self) -> str:
        """Why it ended."""
        return str(self._error or "it closed the connection")

    # --- steps ---

    def _greet(self) -> None:
        self._expect(memoryview(bytearray(1)), self._hear_too_much)
        self._doorkeeper.hear(self, *unpack_hello(self._done))

    def _hear_too_much(self) -> None:
        raise EdgeLostError("it sent more before it was admitted")

    def _expect_header(self) -> None:
        self._expect(memoryview(bytearray(HEADER_BYTES)), self._take_header)

    def _take_header(self) -> None:
        assert self._inflow is not None
        self._header = Header.unpack(self._done, self.channel, self.last_number)
        self.last_number, self.is_reading = self._header.number, True
        if self._inflow.begin(self, self._header):
            self._read_payload()
        else:
            self._transport.pause_reading()

    def _read_payload(self) -> None:
        # Not zeroed: every byte is written before anyone sees it.
        self._expect(np.empty(self._header.num_bytes, np.uint8).data, self._take_payload)

    def _take_payload(self) -> None:
        assert self._inflow is not None
        header, payload, self.is_reading = self._header, self._done, False
        self._expect_header()
        self._inflow.arrive(header, payload)

    def _expect(self, target: memoryview, then: Callable[[], None]) -> None:
        self._target, self._num_read, self._then = target, 0, then

    @property
    def _is_between(self) -> bool:
        return self._inflow is not None and not self.is_reading and self._num_read == 0

    # --- called by the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)  # uvloop's encrypted ones are none
        set_options(transport)
        if (encrypted := transport.get_extra_info("ssl_object")) is not None:
            self.certificate, self.host = shown_certificate(encrypted), vouched_host(encrypted)
        self._doorkeeper.enter(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002, D102
        return self._target[self._num_read :]

    def buffer_updated(self, nbytes: int) -> None:  # noqa: D102
        self._num_read += nbytes
        if self._num_read < len(self._target):
            return
        self._done = self._target
        try:
            self._then()
        except EdgeLostError as error:
            self.abort(error)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        if self._error is None and (error is not None or not self._is_between):
            self._error = EdgeLostError(f"the connection was lost: {error or 'it ended too early'}")
        self._doorkeeper.leave(self)
        if self._inflow is not None:
            self._inflow.end(self, self._error)
