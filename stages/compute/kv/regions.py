"""Which rows of the flat KV cache belong to which session: bookkeeping only, no tensors.

Every session has one contiguous region. When free room is scattered, regions are packed to the front, so a request is
refused only if the total does not suffice:

    before   [ a a a . . b b . . . c . ]     d asks for 5 rows: 6 are free, never 5 in a row
    packed   [ a a a b b c . . . . . . ]     two moves: b by 2, c by 5
    after    [ a a a b b c d d d d d . ]
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from broker_pipeline.errors import KVCapacityError, SessionUnknownError


@dataclass(frozen=True, slots=True)
class Region:
    """Cache rows `[start, start + size)`."""

    start: int
    size: int

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Move:
    """The session's rows must be copied from `source` to `target`; moves are safe in the order given."""

    session: Hashable
    source: int
    target: int


class RegionTable:
    """Regions of sessions within `capacity` rows, ordered by start."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._regions: dict[Hashable, Region] = {}

    def __contains__(self, session: Hashable) -> bool:
        return session in self._regions

    def __getitem__(self, session: Hashable) -> Region:
        if session not in self._regions:
            raise SessionUnknownError(f"no KV is reserved here for session {session!r}")
        return self._regions[session]

    def sessions(self) -> tuple[Hashable, ...]:
        """The sessions, in the order of their regions."""
        return tuple(self._regions)

    @property
    def num_reserved(self) -> int:
        """Rows that belong to some session."""
        return sum(region.size for region in self._regions.values())

    @property
    def num_free(self) -> int:
        """Rows that belong to nobody."""
        return self.capacity - self.num_reserved

    def reserve(self, session: Hashable, size: int) -> list[Move]:
        """Gives a new session `size` rows. Returns the moves that make room, usually none."""
        if session in self._regions:
            raise KVCapacityError(f"session {session!r} has its KV reserved already")
        self._require(size)
        start = self._first_gap(size)
        moves = [] if start is not None else self._pack()
        self._insert(session, Region(self._end() if start is None else start, size))
        return moves

    def grow(self, session: Hashable, size: int) -> list[Move]:
        """Gives a session `size` rows in all, at least as many as it has. Returns the moves that make room."""
        region = self[session]
        if size < region.size:
            raise KVCapacityError(f"session {session!r} holds {region.size} KV rows; {size} would be fewer")
        self._require(size - region.size)
        if region.start + size <= self._next_start(region):
            self._regions[session] = Region(region.start, size)
            return []
        return self._pack({session: size})

    def release(self, session: Hashable) -> None:
        """Takes the session's region back."""
        self[session]
        del self._regions[session]

    def _require(self, size: int) -> None:
        if size > self.num_free:
            raise KVCapacityError(
                f"{size} KV tokens asked for, {self.num_free} of {self.capacity} are free on this stage"
            )

    def _end(self) -> int:
        return max((region.stop for region in self._regions.values()), default=0)

    def _next_start(self, region: Region) -> int:
        later = (other.start for other in self._regions.values() if other.start >= region.stop)
        return min(later, default=self.capacity)

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

    def _pack(self, new_sizes: dict[Hashable, int] | None = None) -> list[Move]:
        """Lays all regions side by side from row 0, in their order, some with a new size.

        Moves towards the front run from the front, then moves towards the back from the back: since the order of
        regions never changes, no copy overwrites rows that still have to be moved.
        """
        moves, free_from = [], 0
        for session, region in self._regions.items():
            packed = Region(free_from, (new_sizes or {}).get(session, region.size))
            moves.append(Move(session, region.start, packed.start))
            self._regions[session] = packed
            free_from = packed.stop
        forward = [move for move in moves if move.target < move.source]
        backward = [move for move in reversed(moves) if move.target > move.source]
        return forward + backward
