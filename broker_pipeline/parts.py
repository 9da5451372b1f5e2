"""Messages larger than the server takes: cut into parts by the sender, joined again by the receiver.

    metadata too long for a header, or payload too long for a message
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

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from nats.aio.msg import Msg

from broker_pipeline.codec import MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, Frame
from broker_pipeline.errors import MalformedEnvelopeError, PartError, SlowConsumerError

METADATA_HEADER = "Bp-Metadata"
PART_HEADER = "Bp-Part"
PART_BYTES = 2**20
RESERVED_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024
_ALIGNMENT = 16
_NUM_REMEMBERED = 256
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
    if _aligned(header.num_metadata_bytes) > header.num_bytes:
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
    in_header = len(frame.metadata) <= rules.header_bytes
    metadata = {METADATA_HEADER: frame.metadata.decode()} if in_header else {}
    if in_header and frame.num_payload_bytes <= rules.part_bytes:
        yield Piece(metadata, _join(frame.pieces))
        return
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


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


# --- joining --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A whole message as received, not yet decoded."""

    metadata: bytes | memoryview
    payload: bytes | memoryview
    reply: str

    @property
    def num_bytes(self) -> int:
        """Bytes that the message holds on to."""
        return len(self.metadata) + len(self.payload)


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A message that will never be whole, and whom to tell."""

    reply: str
    error: PartError


@dataclass(slots=True)
class _Assembly:
    header: PartHeader
    metadata: bytes
    reply: str
    deadline: float
    buffer: memoryview
    filled: int = 0
    next_index: int = 0

    def expects(self, header: PartHeader) -> bool:
        ours = self.header
        return (
            header.index == self.next_index
            and header.count == ours.count
            and header.num_bytes == ours.num_bytes
            and header.num_metadata_bytes == ours.num_metadata_bytes
        )

    def append(self, payload: bytes) -> None:
        end = self.filled + len(payload)
        self.buffer[self.filled : end] = payload
        self.filled = end
        self.next_index += 1

    def whole(self) -> WireMessage:
        split = self.header.num_metadata_bytes
        metadata = bytes(self.buffer[:split]) if split else self.metadata
        return WireMessage(metadata, self.buffer[_aligned(split) :], self.reply)


@dataclass(slots=True)
class Assembler:
    """Joins parts, within bounds: so many messages at once, so long without a part, so many bytes each.

    The bytes of all of them together are the business of the caller, who sees `num_bytes` and says what is too much
    through `room_bytes`.
    """

    max_message_bytes: int
    max_messages: int = 64
    timeout_s: float = 10.0
    num_bytes: int = 0
    _assemblies: dict[str, _Assembly] = field(default_factory=dict)
    _forgotten: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._assemblies)

    def add(
        self, header: PartHeader, metadata: bytes, payload: bytes, reply: str, *, now: float, room_bytes: int
    ) -> WireMessage | None:
        """Take one part; return the whole message when this was the last.

        Raises `PartError` for a part that is foreign or out of place (its message is given up),
        `SlowConsumerError` when a message begins for which there is no room. Further parts of a message that was
        given up are passed over without a word: one error for each message.
        """
        if header.message in self._forgotten:
            return None
        assembly = self._assemblies.get(header.message)
        if assembly is None:
            assembly = self._begin(header, metadata, reply, now, room_bytes)
        self._check(assembly, header, payload)
        assembly.append(payload)
        assembly.deadline = now + self.timeout_s
        if assembly.next_index < header.count:
            return None
        self._end(header.message)
        return assembly.whole()

    def expire(self, now: float) -> list[Abandoned]:
        """Give up every message whose next part is overdue at `now`."""
        return self._give_up([key for key, value in self._assemblies.items() if value.deadline <= now], "came in time")

    def abandon_all(self) -> list[Abandoned]:
        """Give up every message: the connection that brought its parts is gone."""
        return self._give_up(list(self._assemblies), "came before the connection was lost")

    def next_deadline(self) -> float | None:
        """Return when `expire` has something to do next, or None."""
        return min((assembly.deadline for assembly in self._assemblies.values()), default=None)

    def _begin(self, header: PartHeader, metadata: bytes, reply: str, now: float, room_bytes: int) -> _Assembly:
        if header.index:
            self._forget(header.message)
            raise PartError(f"part {header.index} of a message whose first part never came", field="index")
        if header.num_bytes > self.max_message_bytes:
            self._forget(header.message)
            raise PartError(
                f"a message of {header.num_bytes} bytes; at most {self.max_message_bytes} are taken here",
                field="num_bytes",
            )
        if header.num_bytes > room_bytes or len(self) >= self.max_messages:
            self._forget(header.message)
            raise SlowConsumerError(
                f"no room for a message of {header.num_bytes} bytes: there are {max(room_bytes, 0)}, "
                f"and {len(self)} messages are being joined"
            )
        # Not zeroed: every byte is written before anyone sees it.
        buffer = np.empty(header.num_bytes, np.uint8).data
        assembly = _Assembly(header, metadata, reply, now + self.timeout_s, buffer)
        self._assemblies[header.message] = assembly
        self.num_bytes += header.num_bytes
        return assembly

    def _check(self, assembly: _Assembly, header: PartHeader, payload: bytes) -> None:
        end = assembly.filled + len(payload)
        is_last = header.index == header.count - 1
        if not assembly.expects(header):
            reason = f"part {header.index} of {header.count} came where part {assembly.next_index} was expected"
        elif not payload or end > header.num_bytes or is_last != (end == header.num_bytes):
            reason = f"part {header.index} of {header.count} does not fit a message of {header.num_bytes} bytes"
        else:
            return
        self._end(header.message)
        self._forget(header.message)
        raise PartError(reason, field="index")

    def _end(self, message: str) -> _Assembly:
        assembly = self._assemblies.pop(message)
        self.num_bytes -= assembly.header.num_bytes
        return assembly

    def _forget(self, message: str) -> None:
        self._forgotten[message] = None
        if len(self._forgotten) > _NUM_REMEMBERED:
            self._forgotten.popitem(last=False)

    def _give_up(self, messages: list[str], what: str) -> list[Abandoned]:
        abandoned = []
        for message in messages:
            assembly = self._end(message)
            self._forget(message)
            missing = f"part {assembly.next_index} of {assembly.header.count} never {what}"
            abandoned.append(Abandoned(assembly.reply, PartError(missing, field="index")))
        return abandoned


def receive(msg: Msg, assembler: Assembler, now: float, room_bytes: int) -> WireMessage | None:
    """Take a NATS message; return the whole message that it is, or completes.

    Raises `MalformedEnvelopeError`, `PartError` or `SlowConsumerError` (see `Assembler.add`).
    """
    headers = msg.headers or {}
    metadata = headers.get(METADATA_HEADER, "").encode()
    part = headers.get(PART_HEADER)
    if part is not None:
        return assembler.add(read_part_header(part), metadata, msg.data, msg.reply, now=now, room_bytes=room_bytes)
    if not metadata:
        raise MalformedEnvelopeError(f"the message has no header {METADATA_HEADER}", field=METADATA_HEADER)
    return WireMessage(metadata, msg.data, msg.reply)


def is_part(msg: Msg) -> bool:
    """Return whether a NATS message is one part of a larger one."""
    return PART_HEADER in (msg.headers or {})


def whole_bytes(msg: Msg) -> int:
    """Return the size of the whole message that `msg` is, or begins."""
    return read_part_header((msg.headers or {})[PART_HEADER]).num_bytes if is_part(msg) else len(msg.data)
