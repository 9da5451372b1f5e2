"""Which hosts count as down, by a clock of the test's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.intake.down_hosts import DownHosts


def hosts() -> DownHosts:
    return DownHosts(after_s=20.0, forget_s=60.0, max_hosts=3)


def fail(known: DownHosts, *times: float, host: str = "a:80", lasting_s: float = 0.0) -> None:
    for now in times:
        known.failed(host, f"failed at {now:g}", now - lasting_s, now)


def test_a_host_is_down_once_nobody_has_reached_it_for_a_while() -> None:
    known = hosts()
    fail(known, 100, 101, 119)
    assert not known.is_down("a:80", 119)
    fail(known, 120)
    assert known.is_down("a:80", 120)
    assert not known.is_down("b:80", 120)


def test_an_answer_ends_it() -> None:
    known = hosts()
    fail(known, 100, 120)
    known.answered("a:80")
    assert (known.is_down("a:80", 120), len(known)) == (False, 0)
    fail(known, 121)
    assert not known.is_down("a:80", 121)


def test_what_was_long_ago_is_no_news() -> None:
    known = hosts()
    fail(known, 100, 120)
    assert known.is_down("a:80", 180)
    assert not known.is_down("a:80", 181)
    fail(known, 181)
    assert not known.is_down("a:80", 181), "another outage has begun"


def test_who_comes_after_the_last_failure_finds_out_for_itself() -> None:
    known = hosts()
    fail(known, 100, 130)
    assert known.failure("a:80", since=130, now=131) == "failed at 130"
    assert known.failure("a:80", since=131, now=131) is None


def test_a_failure_is_believed_for_as_long_as_it_took() -> None:
    known = hosts()
    fail(known, 100, 130, lasting_s=10)
    assert known.failure("a:80", since=139, now=139) == "failed at 130"
    assert known.failure("a:80", since=140, now=140) is None


def test_hosts_that_failed_longest_ago_are_forgotten_first() -> None:
    known = hosts()
    for host in ("a:1", "b:1", "c:1"):
        fail(known, 100, host=host)
    fail(known, 120, host="a:1")
    fail(known, 120, host="d:1")
    assert len(known) == 3
    fail(known, 121, host="b:1")
    assert (known.is_down("a:1", 121), known.is_down("b:1", 121)) == (True, False)


EVENTS = st.tuples(st.sampled_from(["failed", "answered"]), st.sampled_from("abcd"), st.floats(0, 40))


@given(st.lists(EVENTS, max_size=60))
def test_a_host_that_is_down_has_failed_for_long_and_lately_and_not_answered_since(
    events: list[tuple[str, str, float]],
) -> None:
    known, now = hosts(), 0.0
    failures: dict[str, list[float]] = {}
    for event, host, after_s in events:
        now += after_s
        if event == "failed":
            known.failed(host, "gone", now, now)
            failures.setdefault(host, []).append(now)
        else:
            known.answered(host)
            failures.pop(host, None)
        assert len(known) <= 3
        for name in "abcd":
            if known.is_down(name, now):
                assert failures[name][-1] - failures[name][0] >= 20.0
                assert now - failures[name][-1] <= 60.0
