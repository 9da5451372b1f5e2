"""Joins the parts of large messages, in order, within bounds. Nothing here does I/O; time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec
import numpy as np

from broker_pipeline.errors import ContractVersionError, PartError, SlowConsumerError
from broker_pipeline.messages.base import CONTRACT_VERSION
from broker_pipeline.wire.nats.message import NatsMessage, read_headers
from broker_pipeline.wire.parts import PART_HEADER, PartHeader, read_part_header

_NUM_REMEMBERED = 256
_VERSION_1_HEADER = "Bp-Metadata"


class WireMessage(msgspec.Struct, frozen=True):
    """A whole message as received, not yet taken apart (see `open_whole`)."""

    content: bytes | memoryview
    reply: str
    is_joined: bool = False
    """Whether it came in parts, and its room was given to it before."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A message that will never be whole, and whom to tell."""

    reply: str
    error: PartError


@dataclass(slots=True)
class _Assembly:
    header: PartHeader
    reply: str
    deadline: float
    buffer: memoryview
    filled: int = 0
    next_index: int = 0
    placed: memoryview | None = None
    """Where the next part is being read to at this moment."""

    def expects(self, header: PartHeader) -> bool:
        ours = self.header
        return header.index == self.next_index and header.count == ours.count and header.num_bytes == ours.num_bytes

    def append(self, payload: bytes | memoryview) -> None:
        end = self.filled + len(payload)
        if payload is not self.placed:
            self.buffer[self.filled : end] = payload
        self.filled, self.placed = end, None
        self.next_index += 1


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
        self, header: PartHeader, payload: bytes | memoryview, reply: str, *, now: float, room_bytes: int
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
            assembly = self._begin(header, reply, now, room_bytes)
        self._check(assembly, header, payload)
        assembly.append(payload)
        assembly.deadline = now + self.timeout_s
        if assembly.next_index < header.count:
            return None
        self._end(header.message)
        return WireMessage(assembly.buffer, assembly.reply, is_joined=True)

    def place(self, header: PartHeader, num_bytes: int) -> memoryview | None:
        """Return where a part's `num_bytes`, which are about to be read, may lie without a copy; None: nowhere.

        Until that part is added, every other part of its message is foreign: two would be written to one place.
        """
        assembly = self._assemblies.get(header.message)
        if assembly is None or assembly.placed is not None or not assembly.expects(header):
            return None
        end = assembly.filled + num_bytes
        if end > header.num_bytes:
            return None
        assembly.placed = assembly.buffer[assembly.filled : end]
        return assembly.placed

    def expire(self, now: float) -> list[Abandoned]:
        """Give up every message whose next part is overdue at `now`."""
        return self._give_up([key for key, value in self._assemblies.items() if value.deadline <= now], "came in time")

    def abandon_all(self) -> list[Abandoned]:
        """Give up every message: the connection that brought its parts is gone."""
        return self._give_up(list(self._assemblies), "came before the connection was lost")

    def next_deadline(self) -> float | None:
        """Return when `expire` has something to do next, or None."""
        return min((assembly.deadline for assembly in self._assemblies.values()), default=None)

    def _begin(self, header: PartHeader, reply: str, now: float, room_bytes: int) -> _Assembly:
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
        assembly = _Assembly(header, reply, now + self.timeout_s, buffer)
        self._assemblies[header.message] = assembly
        self.num_bytes += header.num_bytes
        return assembly

    def _check(self, assembly: _Assembly, header: PartHeader, payload: bytes | memoryview) -> None:
        end = assembly.filled + len(payload)
        is_last = header.index == header.count - 1
        if assembly.placed is not None and payload is not assembly.placed:
            reason = f"part {header.index} of {header.count} came while part {assembly.next_index} was being read"
        elif not assembly.expects(header):
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


def receive(message: NatsMessage, assembler: Assembler, now: float, room_bytes: int) -> WireMessage | None:
    """Take a NATS message; return the whole message that it is, or completes.

    Raises `ContractVersionError`, `PartError` or `SlowConsumerError` (see `Assembler.add`).
    """
    if not message.headers:
        return WireMessage(message.payload, message.reply)
    headers = read_headers(message.headers)
    if _VERSION_1_HEADER in headers:
        raise ContractVersionError(
            f"the sender speaks version 1 of the contract, this process {CONTRACT_VERSION}; "
            "run the same release everywhere",
            field="version",
        )
    if (part := headers.get(PART_HEADER)) is None:
        return WireMessage(message.payload, message.reply)
    header = read_part_header(part)
    return assembler.add(header, message.payload, message.reply, now=now, room_bytes=room_bytes)


def place(headers: bytes, num_bytes: int, assembler: Assembler) -> memoryview | None:
    """Return where the payload of a NATS message that is about to be read belongs, if it is a part that fits."""
    part = part_header(headers)
    return assembler.place(part, num_bytes) if part else None


def part_header(headers: bytes) -> PartHeader | None:
    """Return what a NATS message says about itself where it is, or says that it is, one part of a larger one."""
    text = read_headers(headers).get(PART_HEADER) if headers else None
    try:
        return None if text is None else read_part_header(text)
    except PartError:
        return None
