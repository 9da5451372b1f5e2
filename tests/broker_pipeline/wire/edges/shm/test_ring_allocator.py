"""Whatever is allocated and freed in whatever order: records never overlap, and a ring that is read is never full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.wire.edges.shm.ring_allocator import ALIGNMENT_BYTES, Record, RingAllocator

CAPACITY = 1024
STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(1, CAPACITY + 64), st.randoms(use_true_random=False)), max_size=80
)


@given(STEPS)
def test_records_lie_in_the_ring_apart_from_each_other(steps: list) -> None:  # type: ignore[type-arg]
    freed: set[Record] = set()
    held: list[Record] = []
    ring = RingAllocator(CAPACITY, freed.__contains__)
    numbers = set()
    for is_allocation, num_bytes, random in steps:
        if is_allocation:
            record = ring.allocate(num_bytes)
            if record is None:
                assert held or num_bytes > CAPACITY, "an empty ring takes what fits into it"
                continue
            assert record.number not in numbers
            numbers.add(record.number)
            assert 0 <= record.offset <= record.stop - num_bytes <= CAPACITY - num_bytes
            assert record.offset % ALIGNMENT_BYTES == 0
            assert all(record.stop <= other.offset or other.stop <= record.offset for other in held)
            held.append(record)
        elif held:
            freed.add(held.pop(random.randrange(len(held))))
    assert ring.num_records <= len(held) + len(freed)


@given(st.lists(st.integers(1, CAPACITY // 4), min_size=1, max_size=200))
def test_a_ring_that_is_read_in_order_never_refuses_a_quarter_of_it(sizes: list[int]) -> None:
    freed: set[Record] = set()
    ring = RingAllocator(CAPACITY, freed.__contains__)
    last: Record | None = None
    for size in sizes:
        record = ring.allocate(size)
        assert record is not None
        if last is not None:
            freed.add(last)
        last = record


def test_the_tail_waits_for_the_oldest_and_passes_all_that_are_freed() -> None:
    freed: set[Record] = set()
    ring = RingAllocator(96, freed.__contains__)
    first, second, third = (ring.allocate(32) for _ in range(3))
    assert None not in (first, second, third)
    assert ring.allocate(1) is None
    freed.add(second)
    assert ring.allocate(1) is None
    assert ring.oldest == first
    freed.add(first)
    again = ring.allocate(64)
    assert again == Record(3, 0, 64)
    assert ring.oldest == third
    freed |= {third, again}
    fresh = ring.allocate(1)
    assert fresh == Record(4, 0, ALIGNMENT_BYTES), "an empty ring begins again at its start"
