"""Writes what the conductor sees to Redis every second, for `status`, readiness and metrics."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass

import msgspec
import structlog

from broker_pipeline import redis_keys
from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.jobs.job_puller import JobPuller
from broker_pipeline.conductor.jobs.live_job import LiveJobs
from broker_pipeline.conductor.metrics import ConductorMetrics
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.rates import Rate
from broker_pipeline.conductor.workers.roster import Roster
from broker_pipeline.conductor.workers.vision_pool import VisionPool
from broker_pipeline.errors import StateError, TransportError
from broker_pipeline.messages.status import ConductorStatus, RouteStatus, StageStatus, VisionStatus, WorkerTotals
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.model_facts import ModelFacts
from broker_pipeline.scheduling.routes import missing_blocks
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_EVERY_S = 1.0
_TTL_S = 5


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a conductor that hold what is worth showing."""

    dispatcher: Dispatcher
    roster: Roster
    pool: VisionPool
    live: LiveJobs
    committer: Committer
    intake: JobPuller
    transport: Transport


class Reporter:
    """Gathers a `ConductorStatus` and keeps it in Redis."""

    def __init__(
        self, instance: str, epoch: int, facts: ModelFacts, parts: Parts, metrics: ConductorMetrics | None = None
    ) -> None:
        self._metrics = metrics or ConductorMetrics()
        self._instance = instance
        self._epoch = epoch
        self._facts = facts
        self._dispatcher = parts.dispatcher
        self._roster = parts.roster
        self._pool = parts.pool
        self._live = parts.live
        self._committer = parts.committer
        self._intake = parts.intake
        self._transport = parts.transport
        self._started = time.monotonic()
        self._tokens, self._captions = Rate(), Rate()
        self._busy: defaultdict[str, Rate] = defaultdict(Rate)
        self._bubble: defaultdict[str, Rate] = defaultdict(Rate)

    async def run(self, redis: RedisClient, queue: JobQueue, namespace: str, pipeline: str) -> None:
        """Report until cancelled; the report is taken back at the end."""
        key = redis_keys.status(namespace, pipeline)
        is_away = False
        try:
            while True:
                try:
                    status = self._metrics.status = self.gather(await self._num_waiting(queue))
                    encoded = msgspec.json.encode(status)
                    with state_errors("cannot write the status"):
                        await redis.set(key, encoded, ex=_TTL_S)
                except StateError as error:
                    if not is_away:
                        log.warning("status_not_written", reason=error.message)
                    is_away = True
                else:
                    is_away = False
                await asyncio.sleep(_EVERY_S)
        finally:
            self._metrics.status = None
            await self._take_back(redis, key)

    async def _take_back(self, redis: RedisClient, key: str) -> None:
        """Show nothing any more, unless a successor shows itself already."""
        try:
            with state_errors("cannot take the status back"):
                text = await redis.get(key)
                if text is not None and msgspec.json.decode(text, type=ConductorStatus).instance == self._instance:
                    await redis.delete(key)
        except StateError as error:
            log.info("status_left", reason=error.message, ttl_s=_TTL_S)

    def gather(self, num_jobs_waiting: int) -> ConductorStatus:
        """Return the state of this moment."""
        now = time.monotonic()
        scheduler = self._dispatcher.scheduler
        return ConductorStatus(
            instance=self._instance,
            epoch=self._epoch,
            updated_at=time.time(),
            uptime_s=now - self._started,
            fingerprint=self._facts.fingerprint,
            routes=self._routes(),
            missing_blocks=missing_blocks(scheduler.routes.usable, self._facts.num_layers),
            stages=tuple(self._stage(r, now) for r in self._roster.known if r.role == "stage"),
            vision=self._vision(now),
            refused=tuple(self._roster.refused.values()),
            waits_for=self._intake.waits_for,
            num_sessions=self._num_sessions(),
            num_jobs_waiting=num_jobs_waiting,
            tokens_per_s=self._tokens.observe(self._dispatcher.num_tokens, now),
            captions_per_s=self._captions.observe(self._live.num_finished["succeeded"], now),
            num_finished=dict(self._live.num_finished),
            num_replays=self._live.num_replays,
            num_uncommitted_tokens=self._committer.num_tokens,
            transport={"conductor": self._transport.counts}
            | {beat.worker: beat.transport for beat in self._roster.heartbeats.values()},
        )

    def _routes(self) -> tuple[RouteStatus, ...]:
        routes = self._dispatcher.scheduler.routes
        return tuple(
            RouteStatus(
                workers=tuple(worker.name for worker in route.workers),
                blocks=tuple(worker.blocks for worker in route.workers),
                num_sessions=len(routes.lane(route).running),
                num_in_flight=len(routes.lane(route).in_flight),
            )
            for route in routes.open_routes
        )

    def _stage(self, record: WorkerRecord, now: float) -> StageStatus:
        assert record.blocks is not None
        scheduler, key = self._dispatcher.scheduler, record.instance
        state = "suspended" if scheduler.routes.find_suspended(key) else record.state
        return StageStatus(
            worker=record.worker,
            instance=key,
            blocks=record.blocks,
            state=state,
            kv_capacity_tokens=record.kv_capacity_tokens,
            kv_used_tokens=scheduler.ledger.used_tokens(key),
            busy=self._busy_share(key, now),
            bubble=self._bubble_share(key, now),
            totals=_totals(self._roster.heartbeats.get(key)),
        )

    def _vision(self, now: float) -> tuple[VisionStatus, ...]:
        return tuple(
            VisionStatus(
                worker=worker.record.worker,
                instance=worker.record.instance,
                state=worker.record.state if worker.is_alive else "suspended",
                num_preparing=worker.num_requests,
                busy=self._busy_share(worker.record.instance, now),
                totals=_totals(self._roster.heartbeats.get(worker.record.instance)),
            )
            for worker in self._pool.workers
        )

    def _busy_share(self, key: str, now: float) -> float:
        heartbeat = self._roster.heartbeats.get(key)
        return min(1.0, self._busy[key].observe(heartbeat.busy_s, now)) if heartbeat else 0.0

    def _bubble_share(self, key: str, now: float) -> float:
        heartbeat = self._roster.heartbeats.get(key)
        return min(1.0, self._bubble[key].observe(heartbeat.bubble_s, now)) if heartbeat else 0.0

    def _num_sessions(self) -> dict[str, int]:
        scheduler = self._dispatcher.scheduler
        return {
            "preparing": self._live.count("preparing"),
            "waiting": scheduler.num_waiting,
            "running": scheduler.num_running,
            "recovering": self._live.count("recovering"),
            "finishing": self._live.count("finishing"),
        }

    @staticmethod
    async def _num_waiting(queue: JobQueue) -> int:
        try:
            return (await queue.depth()).num_waiting
        except TransportError:
            return 0


def _totals(heartbeat: Heartbeat | None) -> WorkerTotals:
    if heartbeat is None:
        return WorkerTotals()
    return WorkerTotals(
        busy_s=heartbeat.busy_s,
        bubble_s=heartbeat.bubble_s,
        queue_s=heartbeat.queue_s,
        num_microbatches=heartbeat.num_microbatches,
        num_tokens=heartbeat.num_tokens,
        num_cache_hits=heartbeat.num_cache_hits,
        num_cache_misses=heartbeat.num_cache_misses,
    )
