"""Whose fault a failure was: told by the repeats of its sessions elsewhere, on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.conductor.workers.worker_health import WorkerHealth
from broker_pipeline.scheduling.policies.circuit_breaker import BreakerLimits
from tests.kit.fake_clock import FakeClock


def new(num_blames: int = 3) -> tuple[WorkerHealth, FakeClock]:
    clock = FakeClock()
    return WorkerHealth(BreakerLimits(num_blames=num_blames, num_trials=2), clock), clock


def blame(health: WorkerHealth, worker: str, session: str = "x") -> list[str]:
    health.fail([worker], [session], "broken")
    return health.prove(session, ["other"])


def test_a_worker_is_blamed_once_for_a_microbatch_when_all_of_its_sessions_compute_elsewhere() -> None:
    health, _ = new(num_blames=1)
    assert health.fail(["a"], ["x", "y"], "broken") == []
    assert health.spared == {"a"}
    assert health.prove("x", ["b"]) == []
    assert health.prove("y", ["b"]) == ["a"]
    assert (health.state("a"), health.reason("a"), health.spared) == ("open", "broken", frozenset())


def test_nobody_is_blamed_when_one_of_the_sessions_ends_without_having_computed() -> None:
    health, _ = new(num_blames=1)
    health.fail(["a"], ["poison", "y"], "broken")
    assert health.prove("y", ["b"]) == []
    health.dismiss("poison")
    assert (health.state("a"), health.spared) == ("closed", frozenset())


def test_who_is_on_both_routes_is_not_to_blame() -> None:
    health, _ = new(num_blames=1)
    health.fail(["a", "shared"], ["x"], "not a number")
    assert health.prove("x", ["b", "shared"]) == ["a"]
    assert health.state("shared") == "closed"


def test_every_sick_worker_that_a_session_met_is_blamed() -> None:
    health, _ = new(num_blames=1)
    health.fail(["a"], ["x"], "broken")
    health.fail(["b"], ["x"], "broken")
    assert sorted(health.prove("x", ["c"])) == ["a", "b"]


def test_a_time_out_counts_in_full_shared_by_those_who_were_there() -> None:
    for workers in (["a"], ["a", "b"], ["a", "b", "c"]):
        health, _ = new()
        num_needed = 0
        while health.state("a") == "closed":
            health.fail(workers, ["x"], "no answer", is_timeout=True)
            health.prove("x", ["z"])
            num_needed += 1
        assert num_needed == {1: 1, 2: 2, 3: 3}[len(workers)]


def test_a_trial_ends_with_one_failure_or_enough_successes() -> None:
    health, clock = new()
    assert [blame(health, "a") for _ in range(3)] == [[], [], ["a"]]
    assert not health.may_try("a")
    clock.pass_s(1.0)
    assert health.may_try("a")
    health.begin_trial("a")
    assert health.on_trial == {"a"}
    assert health.fail(["a"], ["y"], "still broken") == ["a"]
    assert (health.on_trial, health.may_try("a")) == (frozenset(), False)
    clock.pass_s(2.0)
    health.begin_trial("a")
    for _ in range(2):
        health.succeed(["a", "b"])
    assert (health.state("a"), health.reason("a"), health.on_trial) == ("closed", "", frozenset())


def test_what_nobody_decides_is_forgotten() -> None:
    health, clock = new(num_blames=1)
    health.fail(["a"], ["x"], "broken")
    clock.pass_s(31.0)
    assert health.spared == frozenset()
    assert health.prove("x", ["b"]) == []


EVENTS = st.tuples(
    st.sampled_from(["fail", "prove", "dismiss", "leave", "try", "pass"]),
    st.sampled_from("abc"),
    st.frozensets(st.sampled_from("uvwxyz"), min_size=1),
)


@given(st.lists(EVENTS, max_size=80))
def test_whatever_happens_nobody_is_left_out_without_a_proof_and_nothing_is_kept(
    events: list[tuple[str, str, frozenset[str]]],
) -> None:
    health, clock = new()
    num_failed = dict.fromkeys("abc", 0)
    for event, worker, sessions in events:
        if event == "fail":
            num_failed[worker] += 1
            health.fail([worker], sessions, "broken")
        elif event == "prove":
            for session in sessions:
                assert worker not in health.prove(session, [worker])
        elif event == "dismiss":
            for session in sessions:
                health.dismiss(session)
        elif event == "leave":
            health.leave(worker)
            assert health.state(worker) == "closed"
        elif event == "try" and health.may_try(worker):
            health.begin_trial(worker)
        elif event == "pass":
            clock.pass_s(10.0)
        assert health.on_trial == {key for key in "abc" if health.state(key) == "half_open"}
        assert all(num_failed[key] >= 3 for key in "abc" if health.state(key) != "closed")
    for session in "uvwxyz":
        health.dismiss(session)
    assert health.spared == frozenset()
