"""Which parts of a ring are taken: the sender's bookkeeping. Pure.

                tail = start of the oldest record           head = where the next one goes
                 ▼                                           ▼
    0 ───────────┬─────────┬───────────────┬─────────────────┬─────────────── capacity
    │   free     │ 3 taken │ 4 freed early │ 5 taken         │  free         │
    └────────────┴─────────┴───────────────┴─────────────────┴───────────────┘

    ┌─────────┬────────────┬──────────┬──────────────────────┬───────┐
    │ 7 taken │    free    │ 5 taken  │ 6 taken              │ waste │       after the wrap: no record is cut in two
    └─────────┴────────────┴──────────┴──────────────────────┴───────┘
          head ▲       tail ▲

Records are freed in any order; the tail passes over those that are, from the oldest on. An empty ring begins again at
0, so that light traffic stays in the processor's cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

ALIGNMENT_BYTES = 16


class Record(NamedTuple):
    """A part of the ring: from `offset` on, for one payload and what stands before it."""

    number: int
    offset: int
    stop: int


@dataclass(slots=True)
class RingAllocator:
    """Gives out records. `is_freed` says whether the receiver needs a record no more; once true, it stays true."""

    capacity: int
    is_freed: Callable[[Record], bool]
    _records: deque[Record] = field(default_factory=deque)
    _head: int = 0
    _next_number: int = 0

    @property
    def oldest(self) -> Record | None:
        """The record that the tail waits for; None in an empty ring."""
        return self._records[0] if self._records else None

    @property
    def num_records(self) -> int:
        """Records that the tail has not passed yet."""
        return len(self._records)

    def allocate(self, num_bytes: int) -> Record | None:
        """Take room for `num_bytes` in one piece, or return None when there is none now."""
        self._pass_freed()
        size = num_bytes + ALIGNMENT_BYTES - 1 & -ALIGNMENT_BYTES
        offset = self._place(size)
        if offset is None:
            return None
        record = Record(self._next_number, offset, offset + size)
        self._next_number += 1
        self._head = record.stop
        self._records.append(record)
        return record

    def _pass_freed(self) -> None:
        while self._records and self.is_freed(self._records[0]):
            self._records.popleft()

    def _place(self, size: int) -> int | None:
        if not self._records:
            return 0 if size <= self.capacity else None
        tail = self._records[0].offset
        if self._head <= tail:  # wrapped; a ring that is quite full has the two at one place
            return self._head if size <= tail - self._head else None
        if size <= self.capacity - self._head:
            return self._head
        return 0 if size <= tail else None
