from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.conductor.workers.device_loads import DeviceLoads, RecentRatio


@given(steps=st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1)), min_size=1, max_size=30))
def test_a_ratio_lies_between_those_of_its_steps(steps: list[tuple[float, float]]) -> None:
    ratio, count, units = RecentRatio(), 5.0, 0.0
    ratio.observe(count, units)
    assert ratio.value is None
    for more, share in steps:
        count, units = count + share * more, units + more
        ratio.observe(count, units)
    shares = [share for _, share in steps]
    assert ratio.value is not None
    assert min(shares) - 1e-6 <= ratio.value <= max(shares) + 1e-6


def test_a_ratio_follows_what_has_changed() -> None:
    ratio = RecentRatio()
    for second in range(60):
        ratio.observe(0.2 * min(second, 40) + 0.9 * max(0, second - 40), second)
    assert ratio.value == pytest.approx(0.9, abs=0.02)


def test_a_count_that_begins_anew_is_not_taken_for_less_than_nothing() -> None:
    ratio = RecentRatio()
    for count, units in [(10.0, 0.0), (10.5, 1.0), (0.1, 2.0), (0.6, 3.0)]:
        ratio.observe(count, units)
    assert ratio.value == pytest.approx(0.5)


def test_stages_of_one_device_add_up_over_its_slots() -> None:
    loads = DeviceLoads()
    for second in range(4):
        loads.hear("a", "gpu", 1, 0.3 * second, second)
        loads.hear("b", "gpu", 1, 0.4 * second, second)
        loads.hear("c", "cpu", 4, 1.0 * second, second)
        loads.hear("d", "", 1, 1.0 * second, second)
    assert loads.shares(3.0) == pytest.approx({"gpu": 0.7, "cpu": 0.25})
    loads.hear("b", "gpu", 1, 1.2 + 0.4 * 5, 8.5)
    assert loads.shares(8.6) == pytest.approx({"gpu": 0.4}, rel=0.1)  # all others fell silent
    assert not loads.shares(60.0)
