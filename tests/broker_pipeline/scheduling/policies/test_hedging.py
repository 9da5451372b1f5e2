"""When a request is late, and how many may be made twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.scheduling.policies.hedging import HedgeLimits, Hedging

LIMITS = HedgeLimits()


def after(*seconds: float) -> Hedging:
    hedging = Hedging()
    for each in seconds:
        hedging.note_request(each)
    return hedging


def test_before_enough_is_known_a_request_is_late_after_a_second() -> None:
    assert after().late_after_s == after(*[0.2] * 10).late_after_s == LIMITS.first_s


def test_five_of_a_hundred_are_late() -> None:
    hedging = after(*(number / 100 for number in range(1, 257)))
    assert sum(number / 100 > hedging.late_after_s for number in range(1, 257)) == pytest.approx(0.05 * 256, abs=1)


def test_nobody_is_late_within_a_moment() -> None:
    assert after(*[0.001] * 64).late_after_s == LIMITS.least_s


def test_what_is_late_follows_when_all_become_slower_or_faster() -> None:
    assert after(*[0.2] * 300, *[2.0] * 300).late_after_s == 2.0
    assert after(*[2.0] * 300, *[0.2] * 300).late_after_s == 0.2


def test_hedges_of_workers_that_compute_nothing_cost_no_allowance() -> None:
    hedging = after()
    assert all(hedging.spend(is_free=True) for _ in range(100))
    assert sum(hedging.spend() for _ in range(100)) == LIMITS.burst
    assert hedging.num_hedges == 100 + LIMITS.burst


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e3)), max_size=400))
def test_hedges_are_never_more_than_a_few_percent_of_the_requests_beyond_the_first_ones(
    events: list[float | None],
) -> None:
    """An event is a request that took so long, or, None, one that is late."""
    hedging = after()
    for event in events:
        if event is None:
            hedging.spend()
        else:
            hedging.note_request(event)
        assert hedging.num_hedges <= LIMITS.burst + LIMITS.share * hedging.num_requests + 1e-6
        assert hedging.late_after_s >= LIMITS.least_s
