"""A NATS message as it comes from the server, and who takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

_FIRST_LINE = b"NATS/1.0"
_END = b"\r\n"


class NatsMessage(msgspec.Struct):
    """One message of a subscription."""

    subject: str
    reply: str
    """Where the sender wants an answer; empty when it wants none."""
    headers: bytes
    """The block as it came, from `NATS/1.0` to the empty line; empty without headers. See `read_headers`."""
    payload: bytes | memoryview
    """A copy of its own or, for larger messages, the very memory that the socket was read into."""


class Receiver(Protocol):
    """Takes the messages of a subscription, as they come off the socket."""

    def on_message(self, message: NatsMessage) -> None:
        """Take a message; must not block. What it raises ends the connection."""

    def place(self, headers: bytes, num_bytes: int) -> memoryview | None:
        """Say where a payload of `num_bytes` that is about to be read belongs; None: into memory of its own.

        The message then has this very view as its payload. It may also never come: the connection may end first.
        """

    def on_lost(self) -> None:
        """Hear that the connection is lost: nothing of what has begun will be completed."""

    def expire(self, now: float) -> None:
        """Hear what time it is, every now and then."""


def header_block(headers: Mapping[str, str]) -> bytes:
    """Return headers as they travel. Values have no line ends."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"%b\r\n%b\r\n" % (_FIRST_LINE, lines.encode())


def read_headers(block: bytes) -> dict[str, str]:
    """Return the headers of a block, whoever wrote it; the status of one by the server is under `Status`."""
    first, *lines = block.split(_END)
    headers = {}
    if status := first[len(_FIRST_LINE) :].split(maxsplit=1):
        headers["Status"] = status[0].decode("ascii", "replace")
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return headers
