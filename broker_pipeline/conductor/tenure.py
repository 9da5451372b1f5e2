"""One conductor's tenure: everything that it builds up under one epoch, and drops with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.conductor.jobs.cancels import Cancels
from broker_pipeline.conductor.jobs.dead_letters import DeadLetters
from broker_pipeline.conductor.jobs.job_end import Stores
from broker_pipeline.conductor.jobs.job_puller import JobPuller
from broker_pipeline.conductor.jobs.job_run import JobRunner, RunSettings
from broker_pipeline.conductor.jobs.live_job import LiveJobs
from broker_pipeline.conductor.metrics import ConductorMetrics
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.reporter import Parts, Reporter
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.conductor.workers.preparer import PrepareLimits, Preparer
from broker_pipeline.conductor.workers.roster import Roster, RosterTimes
from broker_pipeline.conductor.workers.vision_pool import VisionPool
from broker_pipeline.config import CommonSettings
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.policies.admission import Admission, AdmissionLimits, Load
from broker_pipeline.scheduling.policies.retries import RetryLimits
from broker_pipeline.scheduling.routes import PipelineIdentity
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_EXPECTED_PROMPT_TOKENS = 512
_MARGIN_S = 1.5  # of the time to drain: for putting back what is left, and for the lease


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a conductor works with, whether or not it holds the lease."""

    transport: Transport
    redis: RedisClient
    model: TextModel
    common: CommonSettings
    settings: ConductorSettings
    instance: str
    metrics: ConductorMetrics = field(default_factory=ConductorMetrics)


class Tenure:
    """All parts of an active conductor, wired together."""

    def __init__(self, around: Surroundings, epoch: int, lease_held: Callable[[], bool]) -> None:
        """`lease_held` says whether the lease is held at this moment."""
        self._around = around
        self._lease_held = lease_held
        self._epoch = epoch
        common, settings, facts = around.common, around.settings, around.model.facts
        self._live = LiveJobs()
        self._store = JobStore(around.redis, common.namespace)
        self._watchers = Watchers()
        self._events = JobEvents(around.transport, common.namespace, self._watchers)
        self._committer = Committer(self._store, self._events, self._refuse)
        builder = EnvelopeBuilder(
            common.pipeline,
            facts.fingerprint,
            epoch,
            subjects.results(common.namespace, common.pipeline, around.instance),
        )
        scheduler = Scheduler(facts.num_layers, _scheduler_limits(settings))
        self._dispatcher = Dispatcher(around.transport, scheduler, builder, self._committer)
        self._pool = VisionPool(self._dispatcher.changed)
        self._roster = self._make_roster()
        self._admission = Admission(
            AdmissionLimits(settings.max_jobs, settings.max_preparing, settings.max_waiting),
            _EXPECTED_PROMPT_TOKENS + settings.default_max_tokens,
        )
        self._media = MediaStore(around.transport, around.redis, common.namespace)
        dead_letters = DeadLetters(FailedJobs(around.redis, common.namespace), self._store, self._media, self._events)
        self._queue = JobQueue(
            around.transport, common.namespace, ack_wait_s=settings.ack_wait_s, on_unreadable=dead_letters.fail
        )
        self._intake = JobPuller(
            self._queue,
            self._live,
            self._make_runner(),
            self._admission,
            self._load,
            RetryLimits(max_attempts=settings.max_attempts),
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Conduct until told to stop and drained.

        Raises (in a group):
            LeaseLostError: a worker obeys another conductor.
            TransportError: the broker connection is gone for good.
        """
        around, common = self._around, self._around.common
        cancels = Cancels(around.transport, subjects.cancel(common.namespace), self._store, self._live)
        reporter = Reporter(around.instance, self._epoch, around.model.facts, self._parts(), around.metrics)
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._dispatcher.run(), name="dispatcher"),
                tasks.create_task(self._roster.run(), name="roster"),
                tasks.create_task(self._committer.run(), name="committer"),
                tasks.create_task(cancels.run(), name="cancels"),
                tasks.create_task(
                    self._watchers.listen(around.transport, subjects.watch(common.namespace)), name="watchers"
                ),
                tasks.create_task(
                    reporter.run(around.redis, self._queue, common.namespace, common.pipeline), name="reporter"
                ),
            ]
            await self._intake.run(stopping, max(0.0, common.drain_s - _MARGIN_S))
            for task in running:
                task.cancel()

    def on_reconnect(self) -> None:
        """Note that the broker was away."""
        self._roster.on_reconnect()

    def _refuse(self, job_id: str, attempt: int) -> None:
        self._dispatcher.refuse(job_id, attempt)

    def _load(self) -> Load:
        scheduler = self._dispatcher.scheduler
        return Load(
            num_jobs=len(self._live),
            num_preparing=self._live.count("preparing") + self._live.count("recovering"),
            num_waiting=scheduler.num_waiting,
            num_vision_workers=self._pool.num_usable,
            num_routes=len(scheduler.routes.open_routes),
            room_tokens=scheduler.room(),
            can_commit=self._committer.is_reachable,
        )

    def _parts(self) -> Parts:
        transport = self._around.transport
        return Parts(self._dispatcher, self._roster, self._pool, self._live, self._committer, self._intake, transport)

    def _make_roster(self) -> Roster:
        around = self._around
        common, settings, facts = around.common, around.settings, around.model.facts
        dtype = "" if settings.dtype == "auto" else settings.dtype
        return Roster(
            around.transport,
            WorkerRegistry(around.redis, common.namespace, common.pipeline),
            self._dispatcher,
            self._pool,
            PipelineIdentity(common.pipeline, facts.fingerprint, dtype, facts.num_layers),
            subjects.heartbeats(common.namespace, common.pipeline),
            self._epoch,
            RosterTimes(heartbeat_timeout_s=settings.heartbeat_timeout_s),
        )

    def _make_runner(self) -> JobRunner:
        around = self._around
        common, settings = around.common, around.settings
        preparer = Preparer(
            around.transport,
            self._pool,
            self._dispatcher.changed,
            self._dispatcher.is_usable,
            around.model.facts.vocab_size,
            PrepareLimits(),
        )
        return JobRunner(
            self._live,
            Stores(self._store, self._media, self._events),
            around.model,
            self._dispatcher,
            preparer,
            self._committer,
            self._admission,
            RunSettings(
                common.pipeline,
                self._epoch,
                settings.prepare_timeout_s,
                settings.max_deliveries,
                self._lease_held,
            ),
        )


def _scheduler_limits(settings: ConductorSettings) -> SchedulerLimits:
    return SchedulerLimits(
        max_sessions=settings.max_sessions,
        max_batch_tokens=settings.max_batch_tokens,
        deadline_s=settings.deadline_s,
        first_deadline_s=settings.first_deadline_s,
    )
