"""The queue's stream is deleted with jobs in it: they run in the end, once."""

from __future__ import annotations

import asyncio

import aiohttp

from broker_pipeline import subjects
from gateway.jobs.lost_jobs import LostJobs
from gateway.wiring import Gateway
from tests.gateway.api.native.test_jobs import accepted, form
from tests.kit.acting.conductor import ActingConductor


async def test_jobs_of_a_deleted_stream_run_once(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, namespace: str
) -> None:
    gateway, _ = running
    lost = [LostJobs(gateway.store, gateway.publisher) for _ in range(2)]  # two gateways, at the same time
    jobs = [(await accepted(http, data=form(jpeg + bytes([number]))))["job_id"] for number in range(5)]
    done, held = await conductor.take(), await conductor.take()
    await conductor.run(done, lambda *_: "done")
    attempt = await conductor.begin(held.spec)
    await gateway.transport.jetstream().delete_stream(subjects.job_stream(namespace))
    assert await asyncio.gather(*(each.publish() for each in lost)) == [4, 4]
    assert await asyncio.gather(*(each.publish() for each in lost)) == [0, 0]
    assert (await gateway.queue.depth()).num_waiting == 4, "one message for each job that has not ended"
    again = [await conductor.take() for _ in range(4)]
    assert {delivery.spec.job_id for delivery in again} == {*jobs} - {done.spec.job_id}
    await conductor.finish(held.spec, attempt, "done")
    for delivery in again:
        await conductor.run(delivery, lambda *_: "done")
    assert conductor.num_runs == dict.fromkeys(jobs, 1)
    assert {(await gateway.store.get(job_id)).status for job_id in jobs} == {"succeeded"}


async def test_what_is_in_the_queue_is_not_put_there_twice(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, jpeg: bytes
) -> None:
    """A gateway that has just started knows no earlier stream, and looks at jobs that are as old as this one."""
    gateway, _ = running
    for number in range(3):
        await accepted(http, data=form(jpeg + bytes([number])))
    assert await LostJobs(gateway.store, gateway.publisher).publish() == 3
    assert (await gateway.queue.depth()).num_waiting == 3
