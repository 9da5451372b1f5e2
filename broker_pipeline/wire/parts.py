"""Messages larger than the server takes: cut into parts by the sender, joined again by the receiver.

    metadata too long for a header (or not ASCII), or payload too long for a message
    ┌────────────────┬─────┬──────────────────────────────────────────┐
    │ metadata (opt.)│ pad │ payload                                  │   num_bytes in all
    └────────────────┴─────┴──────────────────────────────────────────┘
    └── part 0 ───────┘└── part 1 ───────┘ … └── part count-1 ──┘

Every part says which message it belongs to, its index, the number of parts and the size of the whole. All parts of a
message take one subject of one connection, on which NATS keeps order, so that parts arrive in order or not at all:
the receiver accepts only the part that comes next, and a gap is known when the part behind it arrives. A message that
stops arriving is given up at a deadline. Nothing here does I/O; time is passed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.errors import PartError
from broker_pipeline.wire.codec import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, Frame

METADATA_HEADER = "Bp-Metadata"
PART_HEADER = "Bp-Part"
PART_BYTES = 2**20
RESERVED_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024
_ALIGNMENT = 16
MAX_WHOLE_BYTES = MAX_PAYLOAD_BYTES + MAX_METADATA_BYTES + _ALIGNMENT


class PartHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What each part says about itself and its message."""

    message: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    index: Annotated[int, Meta(ge=0, lt=2**20)]
    count: Annotated[int, Meta(ge=1, le=2**20)]
    num_bytes: Annotated[int, Meta(ge=0, le=MAX_WHOLE_BYTES)]
    num_metadata_bytes: Annotated[int, Meta(ge=0, le=MAX_METADATA_BYTES)] = 0
    """Length of the metadata at the front of the whole; 0 when it stands in a header of part 0."""


@dataclass(frozen=True, slots=True)
class SizeRules:
    """What one message to this server may hold; follows from the `max_payload` that it announces."""

    header_bytes: int
    """Longest metadata that travels in a header."""
    part_bytes: int
    """Most payload bytes of one NATS message, headers not counted."""

    @classmethod
    @lru_cache(maxsize=16)
    def for_server(cls, max_payload: int) -> SizeRules:
        """Stay clear of the limit: a server cuts the connection of who exceeds it with payload and headers together."""
        header_bytes = min(MAX_HEADER_BYTES, max_payload // 8)
        part_bytes = min(PART_BYTES, max(max_payload - RESERVED_BYTES, max_payload // 2))
        return cls(header_bytes, part_bytes)


def read_part_header(text: str) -> PartHeader:
    """Parse the header of a part, or raise `PartError`."""
    try:
        header = _PART_DECODER.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise PartError(f"the header of a part cannot be read: {error}", field=PART_HEADER) from error
    if header.index >= header.count:
        raise PartError(f"part {header.index} of a message of {header.count} parts", field="index")
    if padded(header.num_metadata_bytes) > header.num_bytes:
        raise PartError("the metadata is longer than the message that holds it", field="num_metadata_bytes")
    return header


_PART_DECODER = msgspec.json.Decoder(PartHeader)


# --- cutting --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """One NATS message to send."""

    headers: dict[str, str]
    payload: bytes | memoryview


def cut(frame: Frame, rules: SizeRules, message: str) -> Iterator[Piece]:
    """Yield the NATS messages that carry `frame`: one without a part header when it is small enough, or its parts."""
    if (whole := uncut(frame, rules)) is not None:
        yield whole
        return
    in_header = _fits_header(frame, rules)
    metadata = {METADATA_HEADER: frame.metadata.decode("ascii")} if in_header else {}
    pieces = frame.pieces if in_header else (frame.metadata, bytes(-len(frame.metadata) % _ALIGNMENT), *frame.pieces)
    num_bytes = sum(map(len, pieces))
    count = -(-num_bytes // rules.part_bytes)
    for index, payload in enumerate(_slices(pieces, rules.part_bytes)):
        header = PartHeader(
            message=message,
            index=index,
            count=count,
            num_bytes=num_bytes,
            num_metadata_bytes=0 if in_header else len(frame.metadata),
        )
        yield Piece({PART_HEADER: msgspec.json.encode(header).decode(), **(metadata if not index else {})}, payload)


def uncut(frame: Frame, rules: SizeRules) -> Piece | None:
    """Return the one NATS message that holds all of `frame`; None where it has to be cut."""
    if frame.num_payload_bytes > rules.part_bytes or not _fits_header(frame, rules):
        return None
    return Piece({METADATA_HEADER: frame.metadata.decode("ascii")}, _join(frame.pieces))


def _fits_header(frame: Frame, rules: SizeRules) -> bool:
    # nats-py translates header values character by character; where they are not ASCII, that takes 50 us for a kB.
    return len(frame.metadata) <= rules.header_bytes and frame.metadata.isascii()


def _join(pieces: tuple[memoryview | bytes, ...]) -> memoryview | bytes:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _slices(pieces: tuple[memoryview | bytes, ...], size: int) -> Iterator[memoryview | bytes]:
    """Yield the concatenation of `pieces` in slices of `size` bytes; a slice within one piece is not copied."""
    gathered: list[memoryview | bytes] = []
    room = size
    for piece in pieces:
        view = memoryview(piece)
        while view:
            gathered.append(view[:room])
            view = view[room:]
            room -= len(gathered[-1])
            if not room:
                yield _join(tuple(gathered))
                gathered, room = [], size
    if gathered:
        yield _join(tuple(gathered))


def padded(num_bytes: int) -> int:
    """Round up to where tensors may begin."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
