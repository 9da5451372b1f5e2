from __future__ import annotations

import asyncio

from broker_pipeline import subjects
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.wire.transport import Transport
from tests.kit.fake_clock import FakeClock
from tests.kit.waiting import eventually


def test_nobody_is_watched_at_first() -> None:
    assert not Watchers().is_watched("a")


def test_a_job_is_watched_for_as_long_as_was_asked() -> None:
    clock = FakeClock()
    watchers = Watchers(clock)
    watchers.take(WatchRequest(job_ids=("a", "b"), for_s=5.0))
    watchers.take(WatchRequest(job_ids=("b",), for_s=30.0))
    assert watchers.is_watched("a")
    assert not watchers.is_watched("c")
    clock.pass_s(5.1)
    assert not watchers.is_watched("a")
    assert watchers.is_watched("b")


def test_who_was_watched_when_the_broker_went_is_watched_once_it_is_back() -> None:
    clock = FakeClock()
    watchers = Watchers(clock)
    watchers.take(WatchRequest(job_ids=("a",), for_s=5.0))
    clock.pass_s(60.0)
    watchers.on_reconnect()
    assert watchers.is_watched("a")
    assert not watchers.is_watched("b")
    clock.pass_s(10.1)
    assert not watchers.is_watched("a"), "nobody asked again"


def test_all_jobs_can_be_watched() -> None:
    watchers = Watchers()
    watchers.take(WatchRequest(is_for_all=True, for_s=30.0))
    assert watchers.is_watched("whatever")


def test_it_is_told_when_somebody_watches_what_nobody_watched() -> None:
    clock, told = FakeClock(), []
    clock.pass_s(1.0)
    watchers = Watchers(clock)
    with watchers.watched_anew.heard_by(lambda: told.append(clock())):
        for jobs in (("a",), ("a",), ("a", "b"), ("b",)):
            watchers.take(WatchRequest(job_ids=jobs, for_s=5.0))
        assert len(told) == 2, "a, and then b"
        clock.pass_s(6.0)
        watchers.take(WatchRequest(job_ids=("a",), for_s=5.0))
        assert len(told) == 3, "nobody watched it any more"
        for _ in range(3):
            watchers.take(WatchRequest(is_for_all=True, for_s=5.0))
        assert len(told) == 4, "a renewal is nothing new"
        watchers.take(WatchRequest(job_ids=("c",), for_s=5.0))
        assert len(told) == 4, "all are watched"


def test_more_jobs_than_anybody_can_watch_are_refused_and_the_known_ones_stay() -> None:
    watchers = Watchers()
    for start in range(0, 80_000, 4000):
        watchers.take(WatchRequest(job_ids=tuple(f"j{start + n}" for n in range(4000)), for_s=30.0))
    assert watchers.is_watched("j0")
    assert not watchers.is_watched("j79999")


def test_past_watches_make_room_for_new_ones() -> None:
    clock = FakeClock()
    watchers = Watchers(clock)
    for start in range(0, 64_000, 4000):
        watchers.take(WatchRequest(job_ids=tuple(f"j{start + n}" for n in range(4000)), for_s=1.0))
    clock.pass_s(1.1)
    watchers.take(WatchRequest(job_ids=tuple(f"k{n}" for n in range(4000)), for_s=30.0))
    assert watchers.is_watched("k3999")


async def test_requests_are_heard(transport: Transport, namespace: str) -> None:
    watchers, subject = Watchers(), subjects.watch(namespace)
    listening = asyncio.create_task(watchers.listen(transport, subject))
    try:
        await asyncio.sleep(0.1)
        await transport.publish(subject, WatchRequest(job_ids=("a",), for_s=30.0))
        await eventually(lambda: watchers.is_watched("a"))
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
