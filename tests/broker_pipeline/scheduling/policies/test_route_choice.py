"""Which route a session goes to, by what is measured; what stragglers are; which sessions are moved from them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.policies.route_choice import (
    RouteLoad,
    Unwanted,
    choose_route,
    stragglers,
    worth_moving,
)
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState
from tests.kit.simulated.stages import prompt_of, stage_worker


def load(name: str, step_s: float | None, num_sessions: int = 0, room: int = 100_000, idle_s: float = 0.0) -> RouteLoad:
    return RouteLoad(Route((stage_worker(name, 0, 4, kv=1000),)), num_sessions, room, step_s, step_s, idle_s)


def name_of(route: Route) -> str:
    return str(route)


def shares(loads: list[RouteLoad], num_sessions: int) -> Counter[str]:
    """Give sessions to routes, one after the other."""
    for _ in range(num_sessions):
        best = choose_route(loads, 10, Unwanted())
        loads = [replace(each, num_sessions=each.num_sessions + (each.route == best)) for each in loads]
    return Counter({name_of(each.route): each.num_sessions for each in loads})


def test_equal_routes_get_equally_many_and_one_half_as_fast_gets_half_as_many() -> None:
    assert shares([load("a", 0.01), load("b", 0.01)], 30) == {"a": 15, "b": 15}
    assert shares([load("a", 0.01), load("b", 0.02)], 30) == {"a": 20, "b": 10}
    assert shares([load("a", None), load("b", None)], 30) == {"a": 15, "b": 15}


def test_questions_about_one_picture_go_to_one_route_unless_that_has_far_more_sessions() -> None:
    def chosen(num_sessions: int, unwanted: Unwanted = Unwanted(), room: int = 100_000) -> str:  # noqa: B008
        there = load("there", 0.01, num_sessions, room)
        return name_of(choose_route([load("b", 0.01, 10, 200_000), there], 10, unwanted, there.route.key))

    assert [chosen(number) for number in (10, 13, 15)] == ["there", "there", "b"]
    assert chosen(10, room=5) == "b"
    assert chosen(10, Unwanted(failed=("there-1",))) == "b"


def test_one_that_is_new_gets_its_share() -> None:
    assert shares([load("a", 0.01), load("new", None)], 30) == {"a": 15, "new": 15}


def test_a_straggler_gets_nothing_as_long_as_another_can_hold_the_session() -> None:
    assert shares([load("a", 0.01), load("slow", 0.1)], 100) == {"a": 100, "slow": 0}
    assert shares([load("a", 0.01, room=0), load("slow", 0.1)], 100) == {"a": 100, "slow": 0}, "it waits"


def test_slow_hosts_that_are_most_of_the_pipeline_are_no_stragglers() -> None:
    slow = [load(f"slow{number}", 0.05) for number in range(8)]
    assert stragglers([load("a", 0.01), *slow]) == []
    assert len(stragglers([load("a", 0.01), load("b", 0.01), slow[0], slow[1]])) == 2


def test_a_straggler_that_has_nothing_is_tried_again_by_and_by() -> None:
    busy = load("a", 0.01, num_sessions=20)
    assert name_of(choose_route([busy, load("slow", 0.1, idle_s=30.0)], 10, Unwanted())) == "a"
    assert name_of(choose_route([busy, load("slow", 0.1, idle_s=45.0)], 10, Unwanted())) == "slow"


def test_what_a_session_has_failed_on_comes_last_then_what_others_have_then_what_has_no_room() -> None:
    a, b, c = load("a", 0.01), load("b", 0.01), load("c", 0.01, room=5)
    keys = {name_of(each.route): each.route.key for each in (a, b, c)}
    assert name_of(choose_route([a, b, c], 10, Unwanted(failed=keys["a"], spared=keys["b"]))) == "c"
    assert name_of(choose_route([a, b], 10, Unwanted(failed=keys["a"], spared=keys["b"]))) == "b"
    assert name_of(choose_route([a], 10, Unwanted(failed=keys["a"]))) == "a"


@given(st.lists(st.floats(0.001, 10.0), min_size=1, max_size=8))
def test_stragglers_are_never_the_fastest_nor_much_of_the_speed(steps: list[float]) -> None:
    loads = [load(f"w{number}", step_s) for number, step_s in enumerate(steps)]
    slow = {name_of(route) for route in stragglers(loads)}
    assert f"w{steps.index(min(steps))}" not in slow
    assert sum(1 / step_s for number, step_s in enumerate(steps) if f"w{number}" in slow) < 0.25 * sum(
        1 / step_s for step_s in steps
    )


def session(number: int, route: Route, num_left: int) -> SessionState:
    state = SessionState(
        key=SessionKey(f"s{number}", 1), order=number, route=route, prompt=prompt_of(4), sampling=SamplingSettings(),
        num_kv_tokens=4 + num_left,
    )  # fmt: skip
    state.num_reserved_tokens = state.num_kv_tokens
    return state


@pytest.mark.parametrize(("room", "expected"), [(10_000, ["s1", "s2"]), (250, ["s1"]), (0, [])])
def test_sessions_that_gain_by_it_are_moved_as_far_as_there_is_room(room: int, expected: list[str]) -> None:
    slow, fast = load("slow", 0.1), load("fast", 0.01, room=room)
    there = [session(number, slow.route, num_left) for number, num_left in enumerate([5, 200, 100])]
    moved = worth_moving(there, slow, [fast], lambda _route, num_tokens: 0.001 * num_tokens)
    assert [each.key.session for each in moved] == expected, "of the first, little is left"
