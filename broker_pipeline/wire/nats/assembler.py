"""Joins the parts of large messages, in order, within bounds. Nothing here does I/O; time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from broker_pipeline.errors import PartError, PipelineError, SlowConsumerError
from broker_pipeline.wire.nats.parts import PartHeader
from broker_pipeline.wire.room import Room

_NUM_REMEMBERED = 256


Abandoned = tuple[PartError, str]
"""Why a message will never be whole, and the `reply` to tell."""


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
    """Joins parts, within bounds: so many messages at once, so long without a part, and what `room` has for them."""

    room: Room
    """Taken when a message begins, freed when it is given up; of a whole message, by whoever reads it."""
    max_messages: int = 64
    timeout_s: float = 10.0
    _assemblies: dict[str, _Assembly] = field(default_factory=dict)
    _forgotten: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._assemblies)

    def add(self, header: PartHeader, payload: bytes | memoryview, reply: str, *, now: float) -> memoryview | None:
        """Take one part; return the whole message when this was the last.

        Raises `PartError` for a part that is foreign or out of place (its message is given up), and what `Room.take`
        raises when a message begins. Further parts of a message that was given up are passed over without a word: one
        error for each message.
        """
        if header.message in self._forgotten:
            return None
        assembly = self._assemblies.get(header.message)
        if assembly is None:
            assembly = self._begin(header, reply, now)
        self._check(assembly, header, payload)
        assembly.append(payload)
        assembly.deadline = now + self.timeout_s
        if assembly.next_index < header.count:
            return None
        del self._assemblies[header.message]
        return assembly.buffer

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

    def _begin(self, header: PartHeader, reply: str, now: float) -> _Assembly:
        try:
            if header.index:
                raise PartError(f"part {header.index} of a message whose first part never came", field="index")
            if len(self) >= self.max_messages:
                raise SlowConsumerError(f"no room for one more message: {len(self)} are being joined")
            self.room.take(header.num_bytes)
        except PipelineError:
            self._forget(header.message)
            raise
        # Not zeroed: every byte is written before anyone sees it.
        buffer = np.empty(header.num_bytes, np.uint8).data
        assembly = _Assembly(header, reply, now + self.timeout_s, buffer)
        self._assemblies[header.message] = assembly
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
        raise PartError(reason, field="index")

    def _end(self, message: str) -> _Assembly:
        assembly = self._assemblies.pop(message)
        self.room.free(assembly.header.num_bytes)
        self._forget(message)
        return assembly

    def _forget(self, message: str) -> None:
        self._forgotten[message] = None
        if len(self._forgotten) > _NUM_REMEMBERED:
            self._forgotten.popitem(last=False)

    def _give_up(self, messages: list[str], what: str) -> list[Abandoned]:
        abandoned = []
        for message in messages:
            assembly = self._end(message)
            missing = f"part {assembly.next_index} of {assembly.header.count} never {what}"
            abandoned.append((PartError(missing, field="index"), assembly.reply))
        return abandoned
