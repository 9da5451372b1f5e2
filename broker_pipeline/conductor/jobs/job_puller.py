"""Takes jobs from the queue while there is room, keeps them its own, and requeues what it cannot end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from broker_pipeline.conductor.jobs.job_run import JobRunner
from broker_pipeline.conductor.jobs.live_job import LiveJob, LiveJobs
from broker_pipeline.errors import TransportError
from broker_pipeline.messages.jobs import Flow
from broker_pipeline.scheduling.policies.admission import Admission, Load
from broker_pipeline.scheduling.policies.fair_shares import FairShares
from broker_pipeline.scheduling.policies.retries import RetryLimits, RetryPolicy
from broker_pipeline.storage.jobs import Delivery, JobQueue

log = structlog.get_logger()

_PULL_S = 1.0
_PAUSE_S = 0.5
_ROOM_POLL_S = 0.05
_DRAIN_POLL_S = 0.05


@dataclass(slots=True, kw_only=True, eq=False)
class JobPuller:
    """The jobs of one conductor while it holds the lease."""

    queue: JobQueue
    live: LiveJobs
    runner: JobRunner
    admission: Admission
    load: Callable[[], Load]
    """Says what the conductor has on its hands at this moment."""
    retry_limits: RetryLimits
    shares: FairShares = field(default_factory=FairShares)
    waits_for: str | None = None
    """Why no job is taken at this moment."""
    _orders: Iterator[int] = field(default_factory=itertools.count, init=False)
    _tasks: dict[LiveJob, asyncio.Task[None]] = field(default_factory=dict, init=False)
    _is_queue_away: bool = field(default=False, init=False)

    async def run(self, stopping: asyncio.Event, drain_s: Callable[[], float]) -> None:
        """Run jobs until told to stop, and then until all have ended or, as asked then, `drain_s` has passed."""
        async with self.queue, asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(self._keep_deliveries(), name="deliveries")
            pulling = tasks.create_task(self._pull(tasks), name="pull")
            await stopping.wait()
            self.waits_for = "stopping"
            while not pulling.done():  # Python 3.11's `wait_for` may swallow a cancellation
                pulling.cancel()
                await asyncio.wait({pulling}, timeout=_DRAIN_POLL_S)
            await self.queue.close()  # what has arrived is for others, now and not when all have ended here
            await self._drain(drain_s())
            keeper.cancel()

    # --- in ---------------------------------------------------------------------------------------------------------

    async def _pull(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            load = self.load()
            self.waits_for = self.admission.refusal(load)
            if load.num_shares > 1 and not load.num_routes:  # another share may have one
                await self._requeue([job for job in self._tasks if job.phase in ("preparing", "recovering")])
            if self.waits_for is not None and not self.queue.has_arrived:  # there was room when these were asked for
                await asyncio.sleep(_ROOM_POLL_S)
                continue
            num_wanted, num_batch = self.admission.num_wanted(load), self.admission.num_batch_wanted(load)
            wait_s = _PULL_S if num_batch else _ROOM_POLL_S
            try:
                delivery = await self.queue.pull(wait_s, num_wanted, partial(self._plan, num_batch=num_batch))
            except TransportError as error:
                self._note_queue(error)
                await asyncio.sleep(_PAUSE_S)
                continue
            self._note_queue(None)
            if delivery is not None:
                self._take(delivery, tasks)

    def _plan(self, backlog: Mapping[Flow, int], num_wanted: int, *, num_batch: int) -> dict[Flow, int]:
        """Say how many jobs to take of which flow, whose `backlog` counts those in progress as well.

        A pull lasts: what has come up since it began, a pause of this share say, keeps it from asking.
        """
        if self.admission.refusal(self.load()) is not None:
            return {}
        held = self.live.flows
        return self.shares.plan({flow: num - held[flow] for flow, num in backlog.items()}, num_wanted, num_batch)

    def _take(self, delivery: Delivery, tasks: asyncio.TaskGroup) -> None:
        job_id = delivery.spec.job_id
        if held := self.live.get(job_id):
            # The queue gave up on the first delivery while the broker was away; only the newest can be acknowledged.
            log.info("job_delivered_again", job=job_id, num_deliveries=delivery.num_deliveries)
            held.delivery = delivery
            return
        turn = self.shares.take(delivery.spec.flow)
        job = LiveJob(delivery, next(self._orders), RetryPolicy(self.retry_limits), turn)
        self.live.add(job)
        self._tasks[job] = task = tasks.create_task(self.runner.run(job), name=f"job {job_id}")
        task.add_done_callback(lambda _: self._let_go(job))

    def _let_go(self, job: LiveJob) -> None:
        """Hold a job no more whose task has ended, also one that was cancelled before it began."""
        self._tasks.pop(job, None)
        self.live.remove(job)

    def _note_queue(self, error: TransportError | None) -> None:
        if error is not None and not self._is_queue_away:
            log.warning("queue_unreachable", reason=error.message)
        if error is None and self._is_queue_away:
            log.info("queue_reachable")
        self._is_queue_away = error is not None

    async def _keep_deliveries(self) -> None:
        """Say that jobs are being worked on, often enough that two lost messages do no harm."""
        while True:
            await asyncio.sleep(self.queue.ack_wait_s / 3)
            for job in self.live:
                try:
                    await job.delivery.in_progress()
                except TransportError as error:
                    log.info("deliveries_not_prolonged", reason=error.message)
                    break

    # --- out --------------------------------------------------------------------------------------------------------

    async def _drain(self, deadline_s: float) -> None:
        """Requeue what no stage computes yet, wait for the rest, requeue that at the deadline."""
        log.info("draining", num_jobs=len(self.live))
        await self._requeue([job for job in self._tasks if job.phase in ("preparing", "recovering")])
        deadline = asyncio.get_running_loop().time() + deadline_s
        while self._tasks and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
            await self._requeue([job for job in self._tasks if job.phase == "recovering"])
        await self._requeue(list(self._tasks))

    async def _requeue(self, jobs: list[LiveJob]) -> None:
        for job in jobs:
            if task := self._tasks.get(job):
                task.cancel()
                await asyncio.wait({task})
                log.info("job_requeued", job=job.job_id)
                await self.runner.requeue(job)
