"""What lies on the connections of a `tcp` edge, byte by byte. Nothing here does I/O.

    dialer    HELLO │ header │ payload │ header │ payload │ …           one connection a channel:
    listener  WELCOME                                                   a payload takes the first that is for its size

    HELLO     8 magic, version │ u32 channel │ 64 token               WELCOME  8 magic, version │ 64 name of the edge
    header    u64 number │ u64 num_bytes

A decode step does not wait behind a prompt: small, middling and large ones have a connection, and room, of their own.
The numbers of a channel only grow, and each is the channel's modulo the number of channels: none can come twice, and
a number says where it comes. A receiver reads the header by itself and then exactly the payload: nothing is copied.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import msgspec

from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.edges import Token
from broker_pipeline.wire.codec import MAX_PAYLOAD_BYTES

_MAGIC = b"bp-edge\x01"
_HELLO = struct.Struct("<8sI64s")
_WELCOME = struct.Struct("<8s64s")
_HEADER = struct.Struct("<QQ")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
HELLO_BYTES = _HELLO.size
WELCOME_BYTES = _WELCOME.size
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """Which payloads take a channel, and how much of them may wait at the receiver to be taken."""

    max_payload_bytes: int
    room_bytes: int


CHANNELS = (
    ChannelLimits(64 * 2**10, 8 * 2**20),
    ChannelLimits(2 * 2**20, 64 * 2**20),
    ChannelLimits(256 * 2**20, 258 * 2**20),
)
"""By size. A decode step of 256 sessions is 2 MiB for a hidden size of 4,096; a prompt's chunk is 16."""


class Header(msgspec.Struct, frozen=True):
    """What stands in front of a payload."""

    number: int
    num_bytes: int

    def pack(self) -> bytes:
        """Return it as it travels."""
        return _HEADER.pack(self.number, self.num_bytes)

    @classmethod
    def unpack(cls, data: memoryview, channel: int, after: int) -> Header:
        """Read a header that came over `channel` after the number `after`; `EdgeLostError` for one that cannot be."""
        number, num_bytes = _HEADER.unpack(data)
        if number <= after or channel_of(number) != channel:
            raise EdgeLostError(f"payload {number} cannot follow {after} on channel {channel}")
        if not 0 < num_bytes <= CHANNELS[channel].max_payload_bytes:
            raise EdgeLostError(
                f"a payload of {num_bytes} bytes; channel {channel} takes {CHANNELS[channel].max_payload_bytes}"
            )
        return cls(number, num_bytes)


def channel_for(num_bytes: int) -> int | None:
    """Return the channel of a payload; None where it is too large for any."""
    return next((channel for channel, limits in enumerate(CHANNELS) if num_bytes <= limits.max_payload_bytes), None)


def channel_of(number: int) -> int:
    """Return the channel that a payload of this number takes."""
    return number % len(CHANNELS)


def first_number(channel: int) -> int:
    """Return the first number of a channel; the next ones follow at distances of `len(CHANNELS)`."""
    return channel + len(CHANNELS)


def pack_hello(token: Token, channel: int) -> bytes:
    """Return what a dialer says first."""
    return _HELLO.pack(_MAGIC, channel, token.encode())


def unpack_hello(data: memoryview) -> tuple[Token, int]:
    """Return token and channel of a hello; `EdgeLostError` for what is none."""
    magic, channel, token = _HELLO.unpack(data)
    if magic != _MAGIC or channel >= len(CHANNELS):
        raise EdgeLostError("it does not begin as an edge does")
    return _text(token), channel


def pack_welcome(name: str) -> bytes:
    """Return what a listener answers."""
    return _WELCOME.pack(_MAGIC, name.encode())


def unpack_welcome(data: bytes | memoryview) -> str:
    """Return the name of the edge; `EdgeLostError` for what is no welcome."""
    magic, name = _WELCOME.unpack(data)
    if magic != _MAGIC or not _NAME.fullmatch(text := _text(name)):
        raise EdgeLostError("the answer is not an edge's")
    return text


def _text(padded: bytes) -> str:
    try:
        return padded.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise EdgeLostError("it does not begin as an edge does") from error


assert CHANNELS[-1].max_payload_bytes <= MAX_PAYLOAD_BYTES
