"""Which slots of the flat KV cache belong to which session: bookkeeping only, no tensors.

Every session has one contiguous region. When free room is scattered, regions are packed to the front, so a request is
refused only if the total does not suffice:

    before   [ a a a . . b b . . . c . ]     d asks for 5 slots: 6 are free, never 5 in one piece
    packed   [ a a a b b c . . . . . . ]     two moves: b by 2, c by 5
    after    [ a a a b b c d d d d d . ]
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from broker_pipeline.errors import KVCapacityError, SessionUnknownError


@dataclass(frozen=True, slots=True)
class Region:
    """Slots `[start, start + size)`."""

    start: int
    size: int

    @property
    def stop(self) -> int:
        """One past the last slot."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Move:
    """The session's slots must be copied from `source` to `target`; moves are safe in the order given."""

    session: Hashable
    source: int
    target: int


class RegionTable:
    """Regions of sessions within `capacity` slots, ordered by start."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._regions: dict[Hashable, Region] = {}

    def __getitem__(self, session: Hashable) -> Region:
        if session not in self._regions:
            raise SessionUnknownError(f"no KV is reserved here for session {session!r}")
        return self._regions[session]

    @property
    def num_reserved(self) -> int:
        """Slots that belong to some session."""
        return sum(region.size for region in self._regions.values())

    @property
    def num_free(self) -> int:
        """Slots that belong to nobody."""
        return self.capacity - self.num_reserved

    def reserve(self, session: Hashable, size: int) -> list[Move]:
        """Give a new session `size` slots; returns the moves that make room, usually none."""
        if session in self._regions:
            raise KVCapacityError(f"session {session!r} has its KV reserved already")
        self._require(size)
        start = self._first_gap(size)
        moves = [] if start is not None else self._pack()
        self._insert(session, Region(self._end() if start is None else start, size))
        return moves

    def release(self, session: Hashable) -> None:
        """Take the session's region back."""
        self[session]
        del self._regions[session]

    def _require(self, size: int) -> None:
        if size > self.num_free:
            raise KVCapacityError(
                f"{size} KV tokens asked for, {self.num_free} of {self.capacity} are free on this stage"
            )

    def _end(self) -> int:
        return max((region.stop for region in self._regions.values()), default=0)

    def _first_gap(self, size: int) -> int | None:
        free_from = 0
        for region in self._regions.values():
            if region.start - free_from >= size:
                return free_from
            free_from = region.stop
        return free_from if self.capacity - free_from >= size else None

    def _insert(self, session: Hashable, region: Region) -> None:
        self._regions[session] = region
        self._regions = dict(sorted(self._regions.items(), key=lambda item: (item[1].start, item[1].stop)))

    def _pack(self) -> list[Move]:
        """Lay all regions side by side from slot 0, in their order.

        All move towards the front, the first one first, so that no copy overwrites what has still to be moved.
        """
        moves, free_from = [], 0
        for session, region in self._regions.items():
            if region.start > free_from:
                moves.append(Move(session, region.start, free_from))
                self._regions[session] = Region(free_from, region.size)
            free_from += region.size
        return moves
