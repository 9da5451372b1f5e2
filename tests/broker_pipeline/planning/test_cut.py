from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.planning.cut import StageLoad, cut_layers, shares_by_load

LOADS = st.builds(StageLoad, st.integers(0, 30), st.integers(1, 9), st.integers(0, 8))


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        yield from ((first, *rest) for rest in compositions(total - first, parts - 1))


def slowest(loads: list[StageLoad], counts: tuple[int, ...]) -> float:
    if any(count > load.most_layers for load, count in zip(loads, counts, strict=True)):
        return float("inf")
    return max(load.fixed + count * load.each for load, count in zip(loads, counts, strict=True))


@given(loads=st.lists(LOADS, min_size=1, max_size=4), num_layers=st.integers(1, 9))
def test_no_cut_has_a_faster_slowest_stage(loads: list[StageLoad], num_layers: int) -> None:
    cuts = compositions(num_layers, len(loads)) if num_layers >= len(loads) else iter(())
    best = min((slowest(loads, counts) for counts in cuts), default=float("inf"))
    found = cut_layers(num_layers, loads)
    if found is None:
        assert best == float("inf")
    else:
        assert sum(found) == num_layers
        assert slowest(loads, tuple(found)) == best


@given(loads=st.lists(st.tuples(st.floats(0, 9), st.floats(0.1, 9)), min_size=1, max_size=5))
def test_work_goes_by_load_up_to_one_level(loads: list[tuple[float, float]]) -> None:
    plain, whole = [load for load, _ in loads], [cost for _, cost in loads]
    shares = shares_by_load(plain, whole)
    filled = [load + share * cost for load, share, cost in zip(plain, shares, whole, strict=True)]
    level = min(filled)
    assert sum(shares) == pytest.approx(1)
    assert all(share == 0 or load == pytest.approx(level) for load, share in zip(filled, shares, strict=True))
