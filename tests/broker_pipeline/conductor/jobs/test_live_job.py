import asyncio
from typing import cast

import pytest

from broker_pipeline.conductor.jobs.live_job import LiveJob, LiveJobs
from broker_pipeline.errors import CancelledJobError
from broker_pipeline.process.broadcast_event import BroadcastEvent
from broker_pipeline.scheduling.policies.retries import RetryLimits, RetryPolicy
from broker_pipeline.storage.jobs import Delivery


def job() -> LiveJob:
    return LiveJob(cast("Delivery", None), 0, RetryPolicy(RetryLimits()))


async def test_work_of_a_job_that_nobody_cancels_just_runs() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 5

    assert await job().unless_cancelled(work) == 5


async def test_cancelling_the_job_ends_its_work() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    one = job()
    asyncio.get_running_loop().call_later(0.01, one.cancel)
    with pytest.raises(CancelledJobError):
        await one.unless_cancelled(work)
    assert ended.is_set()
    with pytest.raises(CancelledJobError):
        await one.unless_cancelled(asyncio.Event().wait)


async def test_cancelling_the_task_is_no_cancelled_job() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(job().unless_cancelled(work))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_errors_come_through() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await job().unless_cancelled(work)


async def test_a_broadcast_event_wakes_all_who_wait_and_nobody_later() -> None:
    event = BroadcastEvent()
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    event.fire()
    await asyncio.gather(*waiting)
    late = asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    assert not late.done()
    event.fire()
    await late


async def test_a_broadcast_event_wakes_a_task_that_has_not_begun_to_wait() -> None:
    event = BroadcastEvent()
    waiting = asyncio.create_task(event.wait())
    event.fire()
    async with asyncio.timeout(5):
        await waiting


async def test_jobs_are_counted_by_phase_without_being_looked_at() -> None:
    live, jobs = LiveJobs(), [job() for _ in range(3)]
    for number, each in enumerate(jobs):
        live._jobs[str(number)] = each
        each.count_in(live._phases)
    jobs[0].phase = "computing"
    jobs[0].phase = "computing"
    jobs[1].phase = "recovering"
    assert [live.count(phase) for phase in ("preparing", "computing", "recovering", "finishing")] == [1, 1, 1, 0]
