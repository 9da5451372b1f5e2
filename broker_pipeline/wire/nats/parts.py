"""How a message lies in one NATS message, or in several when it is larger than the server takes.

    ┌─────┬──────────────────┬─────┬──────────────────────────────────────────┐
    │ u32 │ metadata         │ pad │ payload                                  │   num_bytes in all
    └─────┴──────────────────┴─────┴──────────────────────────────────────────┘
     length of the metadata   to a multiple of 16
    └── part 0 ───────┘└── part 1 ───────┘ … └── part count-1 ──┘

Metadata stands in front of the payload and in no header: nobody on the way has to look for it, it may hold any text,
and what is one message to the server is one buffer to the receiver, in which the tensors are aligned.

Each part of several has a header that says which message it belongs to, its index, the number of parts and the size
of the whole. All parts of a message take one subject of one connection, on which NATS keeps order, so that parts
arrive in order or not at all: the receiver accepts only the part that comes next, and a gap is known when the part
behind it arrives. A message that stops arriving is given up at a deadline. A message whose payload takes an edge has
metadata alone, and a header that says where the payload is. Nothing here does I/O; time is passed in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.errors import MalformedEnvelopeError, PartError
from broker_pipeline.messages.edges import EdgeRef
from broker_pipeline.wire.codec import ALIGNMENT_BYTES, MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, Frame
from broker_pipeline.wire.nats.message import header_block, read_headers

PART_HEADER = "Bp-Part"
EDGE_HEADER = "Bp-Edge"
PART_BYTES = 2**20
RESERVED_BYTES = 64 * 1024
LENGTH_BYTES = 4
MAX_WHOLE_BYTES = MAX_PAYLOAD_BYTES + MAX_METADATA_BYTES + ALIGNMENT_BYTES
_LENGTH = struct.Struct("<I")
_PADDING = bytes(ALIGNMENT_BYTES)

Pieces = tuple[memoryview | bytes, ...]


class PartHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What each part says about itself and its message."""

    message: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    index: Annotated[int, Meta(ge=0, lt=2**20)]
    count: Annotated[int, Meta(ge=1, le=2**20)]
    num_bytes: Annotated[int, Meta(ge=0, le=MAX_WHOLE_BYTES)]


def payload_bytes(max_payload: int) -> int:
    """Return the most bytes of one NATS message, headers not counted, to a server that announces `max_payload`.

    They stay clear of the limit: a server cuts the connection of who exceeds it with payload and headers together.
    """
    return max(max_payload - RESERVED_BYTES, max_payload // 2)


@lru_cache(maxsize=16)
def part_bytes(max_payload: int) -> int:
    """Return the most bytes of one part."""
    return min(PART_BYTES, payload_bytes(max_payload))


def read_part_header(text: str) -> PartHeader:
    """Parse the header of a part, or raise `PartError`."""
    try:
        header = _PART_DECODER.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise PartError(f"the header of a part cannot be read: {error}", field=PART_HEADER) from error
    if header.index >= header.count:
        raise PartError(f"part {header.index} of a message of {header.count} parts", field="index")
    return header


def part_header(headers: bytes) -> PartHeader | None:
    """Return what a NATS message says about itself where it is, or says that it is, one part of a larger one."""
    text = read_headers(headers).get(PART_HEADER) if headers else None
    try:
        return None if text is None else read_part_header(text)
    except PartError:
        return None


def edge_headers(frame: Frame) -> dict[str, str]:
    """Return what a message says about its payload where that takes an edge; nothing where it does not."""
    return {} if frame.edge is None else {EDGE_HEADER: msgspec.json.encode(frame.edge).decode()}


def read_edge_header(text: str) -> EdgeRef:
    """Parse what `edge_headers` made, or raise `PartError`."""
    try:
        return _EDGE_DECODER.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise PartError(f"where the payload is cannot be read: {error}", field=EDGE_HEADER) from error


_PART_DECODER = msgspec.json.Decoder(PartHeader)
_EDGE_DECODER = msgspec.json.Decoder(EdgeRef)


# --- one message ----------------------------------------------------------------------------------------------------


def whole_bytes(frame: Frame) -> int:
    """Return the size of `frame` as it travels."""
    return _payload_start(len(frame.metadata)) + frame.num_payload_bytes


def whole_pieces(frame: Frame) -> Pieces:
    """Return `frame` as it travels, in pieces: nothing is copied."""
    num_bytes = len(frame.metadata)
    padding = _PADDING[: _payload_start(num_bytes) - LENGTH_BYTES - num_bytes]
    return (_LENGTH.pack(num_bytes), frame.metadata, padding, *frame.pieces)


def open_whole(whole: bytes | memoryview) -> tuple[memoryview, memoryview]:
    """Return metadata and payload of a message as views of it, or raise `MalformedEnvelopeError`."""
    view = memoryview(whole)
    if view.nbytes < LENGTH_BYTES:
        raise MalformedEnvelopeError(f"a message of {view.nbytes} bytes has no metadata", field="metadata")
    (num_bytes,) = _LENGTH.unpack_from(view)
    start = _payload_start(num_bytes)
    if num_bytes > MAX_METADATA_BYTES or start > view.nbytes:
        raise MalformedEnvelopeError(
            f"{num_bytes} bytes of metadata in a message of {view.nbytes} bytes", field="metadata"
        )
    return view[LENGTH_BYTES : LENGTH_BYTES + num_bytes], view[start:]


def _payload_start(num_metadata_bytes: int) -> int:
    """Return where tensors may begin."""
    return LENGTH_BYTES + num_metadata_bytes + ALIGNMENT_BYTES - 1 & -ALIGNMENT_BYTES


# --- cutting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One NATS message to send: its payload is all `pieces` in a row."""

    headers: bytes
    pieces: Pieces


def cut(frame: Frame, size: int, message: str) -> Iterator[Part]:
    """Yield a message that is called `message` in parts of `size` bytes. Nothing is copied."""
    num_bytes = whole_bytes(frame)
    count = -(-num_bytes // size)
    for index, pieces in enumerate(_slices(whole_pieces(frame), size)):
        header = PartHeader(message=message, index=index, count=count, num_bytes=num_bytes)
        yield Part(header_block({PART_HEADER: msgspec.json.encode(header).decode(), **edge_headers(frame)}), pieces)


def _slices(pieces: Pieces, size: int) -> Iterator[Pieces]:
    """Yield the concatenation of `pieces` in slices of `size` bytes, each in pieces of its own."""
    gathered: list[memoryview | bytes] = []
    room = size
    for piece in pieces:
        view = memoryview(piece)
        while view:
            gathered.append(view[:room])
            view = view[room:]
            room -= len(gathered[-1])
            if not room:
                yield tuple(gathered)
                gathered, room = [], size
    if gathered:
        yield tuple(gathered)
