r"""Takes a server's bytes apart: messages go straight to their receivers, everything else is handed on as it is.

    socket ─► room() ─┬─ buffer ───────► lines ─┬─ MSG, HMSG of a receiver's sid ─► on_message (small: copied once)
                      │                         └─ other sids, INFO, PING, +OK … ─► on_other
                      └─ rest of a large payload ───────────────────────────────► on_message (never copied)

    MSG subject sid [reply] num_bytes\r\n payload \r\n
    HMSG subject sid [reply] num_header_bytes num_bytes\r\n headers payload \r\n

The protocol is NATS's: https://docs.nats.io/reference/reference-protocols/nats-protocol. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import nats.errors
import numpy as np

from broker_pipeline.wire.nats.message import NatsMessage, Receiver

BUFFER_BYTES = 128 * 1024
LARGE_BYTES = 16 * 1024
"""Payloads from here on are read into memory of their own where they are not in the buffer already."""
MAX_BYTES = 2**28
"""No server lets a message of this size through; whoever announces one speaks another protocol."""
_END = b"\r\n"
_NUM_FIELDS = {b"MSG": 4, b"HMSG": 5}
"""Behind the kind, with a reply; one less without."""


class _Announced(msgspec.Struct):
    """A message of which the line has been read."""

    receiver: Receiver | None
    subject: str
    reply: str
    num_header_bytes: int
    num_bytes: int
    """Headers and payload."""


@dataclass(slots=True)
class _Filling:
    """A large message on its way into its place."""

    receiver: Receiver
    announced: _Announced
    headers: bytes
    payload: memoryview
    filled: int


class MessageSplitter:
    """The incoming half of one connection: `room`, then `took`, and again."""

    def __init__(self, receivers: Mapping[bytes, Receiver], on_other: Callable[[memoryview], None]) -> None:
        """Deliver to `receivers` (by sid), which may change at any time."""
        self._receivers = receivers
        self._on_other = on_other
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._end = 0
        self._num_other = 0
        self._num_skipped = 0
        self._filling: _Filling | None = None

    def room(self) -> memoryview:
        """Return where the next bytes belong: never empty."""
        if self._filling:
            return self._filling.payload[self._filling.filled :]
        return self._view[self._end :]

    def took(self, num_bytes: int) -> None:
        """Go on with `num_bytes` more in `room`. Raises nats-py's `ProtocolError` for what is no NATS server's."""
        if filling := self._filling:
            filling.filled += num_bytes
            if filling.filled == len(filling.payload):
                self._filling, self._num_skipped = None, len(_END)
                _deliver(filling)
            return
        self._end += num_bytes
        start = self._split()
        left = self._end - start
        if left == BUFFER_BYTES:
            raise nats.errors.ProtocolError(f"the server sent a line of more than {BUFFER_BYTES} bytes")
        if start and left:
            self._view[:left] = self._view[start : self._end]
        self._end = left

    def _split(self) -> int:
        """Dispatch what is complete in the buffer; return where the rest begins."""
        end, at = self._end, 0
        while at < end:
            if self._num_skipped or self._num_other:
                at += self._pass(at)
                continue
            line_end = self._buffer.find(_END, at, end)
            if line_end < 0:
                break
            after = line_end + len(_END)
            if not self._buffer.startswith((b"MSG ", b"HMSG "), at, line_end):
                self._num_other = after - at
                continue
            message = _read_line(bytes(self._view[at:line_end]), self._receivers)
            if message.receiver is None:
                self._num_other = after + message.num_bytes + len(_END) - at
            elif after + message.num_bytes <= end:
                at = after + message.num_bytes + len(_END)
                if at > end:
                    at, self._num_skipped = end, at - end
                self._deliver_from_buffer(message.receiver, message, after)
            elif self._begin(message.receiver, message, after):
                return end
            else:
                break
        return at

    def _pass(self, at: int) -> int:
        """Get past bytes that concern no receiver; return how many."""
        if self._num_skipped:
            num_bytes = min(self._num_skipped, self._end - at)
            self._num_skipped -= num_bytes
            return num_bytes
        num_bytes = min(self._num_other, self._end - at)
        self._num_other -= num_bytes
        self._on_other(self._view[at : at + num_bytes])
        return num_bytes

    def _deliver_from_buffer(self, receiver: Receiver, message: _Announced, at: int) -> None:
        middle = at + message.num_header_bytes
        headers = bytes(self._view[at:middle]) if message.num_header_bytes else b""
        payload = bytes(self._view[middle : at + message.num_bytes])
        receiver.on_message(NatsMessage(message.subject, message.reply, headers, payload))

    def _begin(self, receiver: Receiver, message: _Announced, at: int) -> bool:
        """Give a message that is not whole yet a place of its own; return whether it has one."""
        if message.num_bytes < LARGE_BYTES:
            return False
        if message.num_header_bytes >= LARGE_BYTES:  # strange, but allowed: read as one, taken apart at the end
            headers, payload, start = b"", _memory(message.num_bytes), at
        else:
            start = at + message.num_header_bytes
            if start > self._end:
                return False
            headers = bytes(self._view[at:start])
            num_payload_bytes = message.num_bytes - message.num_header_bytes
            payload = receiver.place(headers, num_payload_bytes) or _memory(num_payload_bytes)
        filled = self._end - start
        payload[:filled] = self._view[start : self._end]
        self._filling = _Filling(receiver, message, headers, payload, filled)
        return True


def _read_line(line: bytes, receivers: Mapping[bytes, Receiver]) -> _Announced:
    kind, *fields = line.split()
    has_headers, has_reply = kind == b"HMSG", len(fields) == _NUM_FIELDS[kind]
    try:
        num_header_bytes, num_bytes = int(fields[-2]) if has_headers else 0, int(fields[-1])
        is_sound = 0 <= num_header_bytes <= num_bytes <= MAX_BYTES and _NUM_FIELDS[kind] - len(fields) in (0, 1)
        reply = fields[2].decode() if has_reply else ""
        message = _Announced(receivers.get(fields[1]), fields[0].decode(), reply, num_header_bytes, num_bytes)
    except (ValueError, IndexError):
        is_sound = False
    if not is_sound:
        raise nats.errors.ProtocolError(f"the server sent a line that cannot be read: {line!r:.200}")
    return message


def _deliver(filling: _Filling) -> None:
    message, headers, payload = filling.announced, filling.headers, filling.payload
    if message.num_header_bytes > len(headers):
        headers, payload = bytes(payload[: message.num_header_bytes]), payload[message.num_header_bytes :]
    filling.receiver.on_message(NatsMessage(message.subject, message.reply, headers, payload))


def _memory(num_bytes: int) -> memoryview:
    """Return memory that is not zeroed: every byte is written before anyone sees it."""
    return np.empty(num_bytes, np.uint8).data
