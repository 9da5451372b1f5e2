"""Which slots of the flat KV cache belong to which session: bookkeeping only, no tensors.

Every session has one contiguous region. When free room is scattered, regions are packed to the front, so a request is
refused only if the total does not suffice. One that grows takes the gap behind it, or a gap that holds all of it, or
has its neighbours move together:

    before   [ a a a . . b b . . . c . ]     d asks for 5 slots: 6 are free, never 5 in one piece
    packed   [ a a a b b c . . . . . . ]     two moves: b by 2, c by 5
    after    [ a a a b b c d d d d d . ]

    before   [ a a . b b b c c c . . e ]     b grows by 3, and no gap holds all of it
    after    [ a a b b b b b b c c c e ]     two moves: b, then c, which has to make way first
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Mapping
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
    """Regions of sessions within `capacity` slots. A session comes and goes without a look at all the others."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_reserved = 0
        """Slots that belong to some session."""
        self._regions: dict[Hashable, Region] = {}
        self._gaps = [Region(0, capacity)] if capacity else []
        """What is free, by start; no two touch."""

    def __getitem__(self, session: Hashable) -> Region:
        if session not in self._regions:
            raise SessionUnknownError(f"no KV is reserved here for session {session!r}")
        return self._regions[session]

    @property
    def num_free(self) -> int:
        """Slots that belong to nobody."""
        return self.capacity - self.num_reserved

    def reserve(self, session: Hashable, size: int) -> list[Move]:
        """Give a new session `size` slots; returns the moves that make room, usually none."""
        if session in self._regions:
            raise KVCapacityError(f"session {session!r} has its KV reserved already")
        self._require(size)
        moves: list[Move] = []
        index = self._first_gap(size)
        if index is None:
            moves, index = self._pack(), 0
        gap = self._gaps[index]
        self._regions[session] = Region(gap.start, size)
        self._gaps[index : index + 1] = [Region(gap.start + size, gap.size - size)] if gap.size > size else []
        self.num_reserved += size
        return moves

    def grow(self, session: Hashable, size: int) -> list[Move]:
        """Give a session `size` slots in all, where that is more; returns the moves for it, its own among them."""
        region = self[session]
        more = size - region.size
        if more <= 0:
            return []
        self._require(more)
        behind = bisect.bisect(self._gaps, region.start, key=lambda gap: gap.start)
        is_next = behind < len(self._gaps) and self._gaps[behind].start == region.stop
        if not (is_next and self._gaps[behind].size >= more) and self._first_gap(size) is not None:
            self.release(session)
            self.reserve(session, size)
            return [Move(session, region.start, self[session].start)]
        self.num_reserved += more
        return self._lay(*self._around(region, behind, more), {session: size})

    def shrink(self, session: Hashable, size: int) -> None:
        """Leave a session the first `size` of its slots, at most what it has; the others are free."""
        start = self[session].start
        self.release(session)
        index = bisect.bisect_right(self._gaps, start, key=lambda gap: gap.start) - 1
        gap = self._gaps[index]
        parts = (Region(gap.start, start - gap.start), Region(start + size, gap.stop - start - size))
        self._gaps[index : index + 1] = [part for part in parts if part.size]
        self._regions[session] = Region(start, size)
        self.num_reserved += size

    def release(self, session: Hashable) -> None:
        """Take the session's region back, and join it with the gaps that it touches."""
        region = self[session]
        del self._regions[session]
        self.num_reserved -= region.size
        first = last = bisect.bisect(self._gaps, region.start, key=lambda gap: gap.start)
        start, stop = region.start, region.stop
        if first and self._gaps[first - 1].stop == start:
            first, start = first - 1, self._gaps[first - 1].start
        if last < len(self._gaps) and self._gaps[last].start == stop:
            last, stop = last + 1, self._gaps[last].stop
        self._gaps[first:last] = [Region(start, stop - start)]

    def _require(self, size: int) -> None:
        if size > self.num_free:
            raise KVCapacityError(
                f"{size} KV tokens asked for, {self.num_free} of {self.capacity} are free on this stage"
            )

    def _first_gap(self, size: int) -> int | None:
        return next((index for index, gap in enumerate(self._gaps) if gap.size >= size), None)

    def _pack(self) -> list[Move]:
        """Lay all regions side by side from slot 0."""
        return self._lay(0, self.capacity, {})

    def _around(self, region: Region, behind: int, size: int) -> tuple[int, int]:
        """Return slots `[start, stop)` around a region with `size` free ones, in the gaps that are nearest to it.

        `behind` is the first gap behind the region.
        """
        first = last = behind
        start, stop = region.start, region.stop
        while size > 0:
            before = start - self._gaps[first - 1].stop if first else self.capacity
            after = self._gaps[last].start - stop if last < len(self._gaps) else self.capacity
            if before < after:
                first -= 1
                gap = self._gaps[first]
                start = gap.start
            else:
                gap = self._gaps[last]
                last += 1
                stop = gap.stop
            size -= gap.size
        return start, stop

    def _lay(self, start: int, stop: int, sizes: Mapping[Hashable, int]) -> list[Move]:
        """Lay the regions in slots `[start, stop)` side by side in their order, some with new `sizes`.

        Moves to the front come first, the first one first, then those to the back, the last one first: so no copy
        overwrites what has still to be moved.
        """
        inside = [item for item in self._regions.items() if start <= item[1].start < stop]
        to_front: list[Move] = []
        to_back: list[Move] = []
        free_from = start
        for session, region in sorted(inside, key=lambda item: item[1].start):
            if region.start != free_from:
                moves = to_front if region.start > free_from else to_back
                moves.append(Move(session, region.start, free_from))
            self._regions[session] = Region(free_from, sizes.get(session, region.size))
            free_from = self._regions[session].stop
        first, last = (bisect.bisect_left(self._gaps, slot, key=lambda gap: gap.start) for slot in (start, stop))
        self._gaps[first:last] = [Region(free_from, stop - free_from)] if free_from < stop else []
        return [*to_front, *reversed(to_back)]
