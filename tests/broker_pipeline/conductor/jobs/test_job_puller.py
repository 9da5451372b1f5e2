"""What a conductor holds of jobs that it takes and gives back at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from broker_pipeline.conductor.jobs.job_puller import JobPuller
from broker_pipeline.conductor.jobs.job_run import JobRunner
from broker_pipeline.conductor.jobs.live_job import LiveJob, LiveJobs
from broker_pipeline.messages.jobs import ChatMessage, Flow, JobSpec, TextPart
from broker_pipeline.scheduling.policies.admission import Admission, AdmissionLimits, Load
from broker_pipeline.scheduling.policies.retries import RetryLimits
from broker_pipeline.storage.jobs import Delivery, JobQueue
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.pulling import after_asking
from tests.kit.waiting import eventually

READY = Load(
    num_jobs=0,
    num_preparing=0,
    num_waiting=0,
    num_vision_workers=1,
    num_routes=1,
    room_tokens=10_000,
    can_commit=True,
    kv_tokens=10_000,
    num_shares=1,
)


def new_spec(job_id: str) -> JobSpec:
    message = ChatMessage(role="user", content=(TextPart(text="x"),))
    return JobSpec(job_id=job_id, created_at=0.0, messages=(message,))


def unused_runner(kind: type[JobRunner], live: LiveJobs) -> JobRunner:
    """Return a runner of jobs none of which begins an attempt, so that nothing else of it is touched."""
    nothing: Any = None
    return kind(
        live=live, stores=nothing, builder=nothing, generations=nothing, committer=nothing, ends=nothing, limits=nothing
    )


async def test_a_job_that_is_requeued_before_it_has_begun_is_held_no_more() -> None:
    requeued: list[float] = []

    async def nak(delay: float) -> None:
        requeued.append(delay)

    live = LiveJobs()
    nothing: Any = None
    puller = JobPuller(
        queue=nothing,
        live=live,
        runner=unused_runner(JobRunner, live),
        admission=nothing,
        load=nothing,
        retry_limits=RetryLimits(),
    )
    message: Any = SimpleNamespace(nak=nak)
    async with asyncio.TaskGroup() as tasks:
        puller._take(Delivery(new_spec("job-1"), 1, message), tasks)
        await puller._requeue(list(puller._tasks))
    assert requeued == [0.0]
    assert len(live) == live.count("preparing") == 0


class Computing(JobRunner):
    """Runs every job for ever."""

    async def run(self, job: LiveJob) -> None:
        job.phase = "computing"
        await asyncio.Event().wait()


async def test_a_job_that_comes_when_it_stops_is_for_others_while_it_drains(
    transport: Transport, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, stopping = LiveJobs(), asyncio.Event()
    queue = JobQueue(transport, namespace, ack_wait_s=30.0)
    await queue.ensure()
    admission = Admission(AdmissionLimits(), expected_tokens=100)
    puller = JobPuller(
        queue=queue,
        live=live,
        runner=unused_runner(Computing, live),
        admission=admission,
        load=lambda: READY,
        retry_limits=RetryLimits(),
    )
    running = asyncio.create_task(puller.run(stopping, lambda: 60.0))
    await queue.publish(new_spec("first"))
    await eventually(lambda: live.count("computing") == 1)
    after_asking(monkeypatch, stopping.set)
    await queue.publish(new_spec("second"))
    await eventually(stopping.is_set)
    monkeypatch.undo()
    async with JobQueue(transport, namespace) as other:
        delivery = await other.pull(5.0)
        assert delivery is not None
        assert delivery.spec.job_id == "second"
    assert live.count("computing") == 1
    running.cancel()
    await asyncio.wait({running})


def test_a_pull_that_lasts_asks_for_nothing_once_other_shares_go_first() -> None:
    """Else a share gets each job back that it has just left to the others, and fails it for good."""
    nothing: Any = None  # no job is taken
    load = replace(READY, num_shares=2)
    loads = [load, replace(load, others_go_first=True), load]
    puller = JobPuller(
        queue=nothing,
        live=LiveJobs(),
        runner=nothing,
        admission=Admission(AdmissionLimits(), expected_tokens=100),
        load=lambda: loads.pop(0),
        retry_limits=RetryLimits(),
    )
    flow = Flow("interactive", "")
    asked = [puller._plan({flow: 3}, 2, num_batch=2) for _ in range(3)]
    assert asked == [{flow: 2}, {}, {flow: 2}]
