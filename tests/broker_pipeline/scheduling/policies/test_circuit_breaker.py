"""Any order of blames, successes and time: a breaker keeps to its limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.scheduling.policies.circuit_breaker import BreakerLimits, CircuitBreaker

LIMITS = BreakerLimits(num_blames=3, window_s=60.0, num_trials=4, backoff_s=1.0, max_backoff_s=16.0, forget_s=600.0)


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(LIMITS)
    assert [breaker.blame("out of memory", now) for _ in range(3)] == [False, False, True]
    return breaker


def test_a_few_blames_within_the_window_open_it_and_say_why() -> None:
    breaker = CircuitBreaker(LIMITS)
    assert [breaker.blame("x", now) for now in (0.0, 1.0, 70.0, 71.0)] == [False] * 4
    assert (breaker.state, breaker.reason) == ("closed", "")
    assert breaker.blame("out of memory", 72.0)
    assert (breaker.state, breaker.reason) == ("open", "out of memory")


def test_it_waits_is_tried_and_closes_after_enough_successes() -> None:
    breaker = opened()
    assert not breaker.may_try(0.99)
    assert breaker.may_try(1.0)
    breaker.begin_trial()
    assert [breaker.succeed(1.0) for _ in range(4)] == [False, False, False, True]
    assert (breaker.state, breaker.reason) == ("closed", "")


def test_each_failed_trial_doubles_the_backoff_up_to_the_longest() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(6):
        wait_s = next(s for s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0) if breaker.may_try(now + s))
        waits.append(wait_s)
        now += wait_s
        breaker.begin_trial()
        assert breaker.blame("still", now), "one failure is enough"
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 16.0]


@pytest.mark.parametrize(("closed_s", "backoff_s"), [(10.0, 2.0), (600.0, 1.0)])
def test_only_one_that_was_well_for_long_begins_with_the_first_backoff(closed_s: float, backoff_s: float) -> None:
    breaker = opened()
    breaker.begin_trial()
    for _ in range(4):
        breaker.succeed(1.0)
    now = 1.0 + closed_s
    for _ in range(3):
        breaker.blame("again", now)
    assert breaker.may_try(now + backoff_s)
    assert not breaker.may_try(now + backoff_s - 0.01)


@given(st.lists(st.tuples(st.sampled_from(["blame", "succeed", "try"]), st.floats(0, 40)), max_size=120))
def test_whatever_happens(events: list[tuple[str, float]]) -> None:
    breaker, now, opened_at, num_blames, num_successes = CircuitBreaker(LIMITS), 0.0, -1.0, 0, 0
    for event, wait_s in events:
        now += wait_s
        before = breaker.state
        if event == "blame":
            num_blames += before == "closed"
            if breaker.blame("x", now):
                assert before == "half_open" or num_blames >= LIMITS.num_blames
                opened_at, num_blames, num_successes = now, 0, 0
        elif event == "succeed":
            num_successes += before == "half_open"
            assert breaker.succeed(now) == (num_successes == LIMITS.num_trials and before == "half_open")
            num_successes *= breaker.state == "half_open"
        elif breaker.may_try(now):
            breaker.begin_trial()
        if before == "open" and breaker.state != "open":
            assert now - opened_at >= LIMITS.backoff_s
        if breaker.state == "open":
            assert breaker.may_try(opened_at + LIMITS.max_backoff_s), "none is left out for ever"
        assert bool(breaker.reason) == (breaker.state != "closed")
