"""Region bookkeeping: room is refused only when the total is short, and no copy loses a token."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker_pipeline.errors import KVCapacityError, SessionUnknownError
from stages.compute.kv.regions import Move, Region, RegionTable

CAPACITY = 40


def test_a_free_gap_is_used_without_moves():
    table = RegionTable(10)
    for session, size in (("a", 3), ("b", 3), ("c", 4)):
        assert table.reserve(session, size) == []
    table.release("b")
    assert table.reserve("d", 2) == []
    assert table["d"] == Region(3, 2)
    assert table["c"] == Region(6, 4)


def test_scattered_room_is_gathered():
    table = RegionTable(12)
    for session, size in (("a", 3), ("x", 2), ("b", 2), ("y", 3), ("c", 1), ("z", 1)):
        table.reserve(session, size)
    for session in "xyz":
        table.release(session)
    assert table.reserve("d", 5) == [Move("b", 5, 3), Move("c", 10, 5)]
    assert table["d"] == Region(6, 5)


def test_a_region_grows_into_the_gap_behind_it_without_moves():
    table = RegionTable(10)
    table.reserve("a", 3)
    assert table.grow("a", 5) == []
    assert table.grow("a", 4) == [], "it has more already"
    assert (table["a"], table.num_free) == (Region(0, 5), 5)


def test_a_region_without_a_gap_behind_it_moves_to_one_that_holds_it():
    table = RegionTable(12)
    table.reserve("a", 3)
    table.reserve("b", 3)
    assert table.grow("a", 4) == [Move("a", 0, 6)]
    assert table.reserve("c", 3) == []
    assert (table["a"], table["c"]) == (Region(6, 4), Region(0, 3))


def test_neighbours_make_way_where_no_gap_holds_a_region_that_grows():
    table = RegionTable(12)
    for session, size in (("a", 2), ("x", 1), ("b", 3), ("c", 3), ("y", 2), ("e", 1)):
        table.reserve(session, size)
    table.release("x")
    table.release("y")
    assert table.grow("b", 6) == [Move("b", 3, 2), Move("c", 6, 8)]
    assert [table[session] for session in "abce"] == [Region(0, 2), Region(2, 6), Region(8, 3), Region(11, 1)]


def test_the_end_of_a_region_that_shrinks_joins_the_gap_behind_it():
    table = RegionTable(12)
    for session, size in (("a", 5), ("b", 5)):
        table.reserve(session, size)
    table.shrink("b", 1)
    assert (table["b"], table.num_free) == (Region(5, 1), 6)
    assert table.reserve("c", 6) == []
    assert table["c"] == Region(6, 6)


def test_errors_say_what_is_short():
    table = RegionTable(10)
    table.reserve("a", 6)
    with pytest.raises(KVCapacityError, match="5 KV tokens asked for, 4 of 10 are free"):
        table.reserve("b", 5)
    with pytest.raises(KVCapacityError, match="reserved already"):
        table.reserve("a", 1)
    with pytest.raises(KVCapacityError, match="5 KV tokens asked for, 4 of 10 are free"):
        table.grow("a", 11)
    with pytest.raises(SessionUnknownError):
        table.grow("b", 1)
    with pytest.raises(SessionUnknownError):
        table.release("b")


class Regions(RuleBasedStateMachine):
    """Random histories against a model: a list of slots whose contents must survive every move."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RegionTable(CAPACITY)
        self.slots: list[object] = [None] * CAPACITY
        self.sizes: dict[int, int] = {}
        self.count = 0

    def apply(self, moves: list[Move], sizes: dict[int, int]) -> None:
        for move in moves:  # copies everything that the session held, as the cache does through a temporary
            held = self.slots[move.source : move.source + sizes[move.session]]
            self.slots[move.target : move.target + len(held)] = held

    @rule(size=st.integers(1, 15))
    def reserve(self, size: int) -> None:
        session = self.count
        self.count += 1
        if size > CAPACITY - sum(self.sizes.values()):
            with pytest.raises(KVCapacityError):
                self.table.reserve(session, size)
            return
        self.apply(self.table.reserve(session, size), self.sizes)
        self.sizes[session] = size
        self.fill(session)

    @rule(choice=st.integers(0, 100), more=st.integers(0, 15))
    def grow(self, choice: int, more: int) -> None:
        if not self.sizes:
            return
        session = sorted(self.sizes)[choice % len(self.sizes)]
        size = self.sizes[session] + more
        if more > CAPACITY - sum(self.sizes.values()):
            with pytest.raises(KVCapacityError):
                self.table.grow(session, size)
            return
        self.apply(self.table.grow(session, size), self.sizes)
        self.sizes[session] = size
        self.fill(session)

    @rule(choice=st.integers(0, 100), less=st.integers(0, 15))
    def shrink(self, choice: int, less: int) -> None:
        if self.sizes:
            session = sorted(self.sizes)[choice % len(self.sizes)]
            self.sizes[session] = max(1, self.sizes[session] - less)
            self.table.shrink(session, self.sizes[session])

    @rule(choice=st.integers(0, 100))
    def release(self, choice: int) -> None:
        if self.sizes:
            session = sorted(self.sizes)[choice % len(self.sizes)]
            self.table.release(session)
            del self.sizes[session]

    def fill(self, session: int) -> None:
        region = self.table[session]
        for offset in range(region.size):
            self.slots[region.start + offset] = (session, offset)

    @invariant()
    def contents_survive(self) -> None:
        for session, size in self.sizes.items():
            region = self.table[session]
            assert region.size == size
            assert self.slots[region.start : region.stop] == [(session, offset) for offset in range(size)]

    @invariant()
    def regions_are_in_order_and_apart(self) -> None:
        regions = sorted((self.table[session] for session in self.sizes), key=lambda region: region.start)
        assert all(a.stop <= b.start for a, b in pairwise(regions))
        assert all(region.start >= 0 and region.stop <= CAPACITY for region in regions)
        assert self.table.num_free == CAPACITY - sum(self.sizes.values())
        gaps = self.table._gaps
        assert sum(gap.size for gap in gaps) == self.table.num_free
        assert all(a.stop < b.start for a, b in pairwise(gaps))


TestRegions = Regions.TestCase
TestRegions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
