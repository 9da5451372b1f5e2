"""What a share leaves to the others, and how often."""

from __future__ import annotations

import pytest

from broker_pipeline.conductor.jobs.other_shares import OtherShares
from broker_pipeline.errors import Failure
from tests.kit.fake_clock import FakeClock

SICK = Failure("compute", "out of memory")


def test_a_job_is_left_to_the_others_once_and_then_some_returns_long() -> None:
    others = OtherShares(lambda: 2)
    assert not others.come_first("a")
    assert others.should_try("a", SICK)
    assert not others.should_try("a", SICK)
    returns = [others.come_first("a") for _ in range(5)]
    assert returns == [True, True, True, False, False]
    assert others.should_try("b", SICK)


def test_without_another_share_and_where_no_worker_can_be_why_it_ends_here() -> None:
    num_shares = 1
    others = OtherShares(lambda: num_shares)
    assert not others.should_try("a", SICK)
    num_shares = 2
    assert not others.should_try("a", Failure("worker_lost", "gone"))
    assert others.should_try("a", SICK)
    num_shares = 1
    assert not others.come_first("a"), "who should have it?"


def test_not_all_jobs_are_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_pipeline.conductor.jobs.other_shares._MOST_REMEMBERED", 2)
    others = OtherShares(lambda: 2)
    assert all(others.should_try(job_id, SICK) for job_id in "abc")
    assert [others.come_first(job_id) for job_id in "abc"] == [False, True, True]


def test_the_others_go_first_for_longer_and_longer_until_a_job_succeeds_here() -> None:
    clock = FakeClock()
    others = OtherShares(lambda: 2, clock)
    assert not others.go_first
    pauses = []
    for job_id in "abcdefgh":
        assert others.should_try(job_id, SICK)
        assert others.should_try(f"{job_id} in hand", SICK)
        began = clock.now
        while others.go_first:
            clock.pass_s(0.25)
        pauses.append(clock.now - began)
    assert pauses == [0.5, 1.0, *[2.0] * 6]
    others.come_first("a")
    assert others.go_first
    others.note_success()
    assert not others.go_first
