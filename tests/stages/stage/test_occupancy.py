"""How a stage's time divides."""

from __future__ import annotations

import time

import pytest

from stages.stage.occupancy import Occupancy

S = 10**9


def test_time_between_microbatches_is_a_bubble_while_sessions_are_open() -> None:
    occupancy = Occupancy()
    occupancy.enter(10 * S)
    occupancy.leave(has_sessions=True, now=12 * S)
    occupancy.enter(15 * S)
    occupancy.leave(has_sessions=False, now=16 * S)
    occupancy.enter(116 * S)
    occupancy.leave(has_sessions=False, now=117 * S)
    assert (occupancy.busy_s, occupancy.bubble_s) == (4.0, 3.0)


def test_microbatches_that_overlap_count_once() -> None:
    occupancy = Occupancy()
    occupancy.enter(0)
    occupancy.enter(1 * S)
    occupancy.leave(has_sessions=True, now=2 * S)
    occupancy.leave(has_sessions=True, now=5 * S)
    occupancy.enter(7 * S)
    occupancy.leave(has_sessions=False, now=8 * S)
    assert (occupancy.busy_s, occupancy.bubble_s) == (6.0, 2.0)


@pytest.mark.parametrize("is_inside", [True, False])
def test_what_goes_on_counts_up_to_now(*, is_inside: bool) -> None:
    occupancy = Occupancy()
    occupancy.enter()
    if not is_inside:
        occupancy.leave(has_sessions=True)
    time.sleep(0.05)
    grows, stays = (occupancy.busy_s, occupancy.bubble_s) if is_inside else (occupancy.bubble_s, occupancy.busy_s)
    assert grows >= 0.05
    assert stays < 0.05
