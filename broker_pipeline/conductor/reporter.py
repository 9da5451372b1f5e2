"""Writes what the conductor sees to Redis every second, for `status`, readiness and metrics."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Literal

import msgspec
import structlog

from broker_pipeline import redis_keys
from broker_pipeline.conductor.parts import Parts
from broker_pipeline.conductor.rates import Rate
from broker_pipeline.conductor.surroundings import Surroundings, Term
from broker_pipeline.conductor.workers.roster import Member
from broker_pipeline.errors import StateError, TransportError
from broker_pipeline.messages.status import (
    ConductorStatus,
    HedgeCounts,
    KeptCounts,
    RouteStatus,
    StageStatus,
    VisionStatus,
    WorkerTotals,
)
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.scheduling.routes import missing_blocks
from broker_pipeline.state.redis_client import state_errors

log = structlog.get_logger()

_EVERY_S = 1.0
_TTL_S = 5


class Reporter:
    """Gathers a `ConductorStatus` and keeps it in Redis."""

    def __init__(self, around: Surroundings, term: Term, parts: Parts) -> None:
        """Show `parts` in Redis, and through the metrics `around` them."""
        self._around = around
        self._term = term
        self._parts = parts
        self._key = redis_keys.status(around.common.namespace, around.common.pipeline, term.share)
        self._started = around.clock()
        self._tokens, self._captions = Rate(), Rate()
        self._shares: defaultdict[tuple[str, str], Rate] = defaultdict(Rate)

    async def run(self) -> None:
        """Report until cancelled; the report is taken back at the end."""
        is_away = False
        try:
            while True:
                try:
                    status = self.gather(await self._num_waiting())
                    self._around.metrics.show(status)
                    encoded = msgspec.json.encode(status)
                    with state_errors("cannot write the status"):
                        await self._around.redis.set(self._key, encoded, ex=_TTL_S)
                except StateError as error:
                    if not is_away:
                        log.warning("status_not_written", reason=error.message)
                    is_away = True
                else:
                    is_away = False
                await asyncio.sleep(_EVERY_S)
        finally:
            self._around.metrics.take_back(self._term.share, self._term.epoch)
            await self._take_back()

    async def _take_back(self) -> None:
        """Show nothing any more, unless a successor shows itself already."""
        try:
            with state_errors("cannot take the status back"):
                text = await self._around.redis.get(self._key)
                if text is not None and self._is_own(msgspec.json.decode(text, type=ConductorStatus)):
                    await self._around.redis.delete(self._key)
        except StateError as error:
            log.info("status_left", reason=error.message, ttl_s=_TTL_S)

    def _is_own(self, status: ConductorStatus) -> bool:
        return status.epoch == self._term.epoch

    def gather(self, num_jobs_waiting: int) -> ConductorStatus:
        """Return the state of this moment."""
        now, parts, facts = self._around.clock(), self._parts, self._around.model.facts
        return ConductorStatus(
            instance=self._around.instance,
            epoch=self._term.epoch,
            share=self._term.share,
            updated_at=time.time(),
            uptime_s=now - self._started,
            fingerprint=facts.fingerprint,
            model=facts.name,
            vocab_size=facts.vocab_size,
            routes=self._routes(),
            missing_blocks=missing_blocks(parts.scheduler.routes.usable, facts.num_layers),
            stages=tuple(self._stage(each, now) for each in parts.roster.members if each.record.role == "stage"),
            vision=self._vision(now),
            refused=parts.roster.refused,
            waits_for=parts.puller.waits_for,
            num_sessions=self._num_sessions(),
            num_jobs_waiting=num_jobs_waiting,
            tokens_per_s=self._tokens.observe(parts.generations.num_tokens, now),
            captions_per_s=self._captions.observe(parts.live.num_finished["succeeded"], now),
            predicted_captions_per_s=self._around.settings.predicted_captions_per_s or 0.0,
            num_finished=dict(parts.live.num_finished),
            num_replays=parts.live.num_replays,
            num_preemptions=parts.scheduler.growth.num_preemptions,
            num_prompt_tokens=parts.scheduler.batches.num_prompt_tokens,
            num_copied_tokens=parts.scheduler.batches.num_copied_tokens,
            num_draft_tokens=parts.scheduler.batches.drafting.num_drafted,
            num_accepted_tokens=parts.scheduler.batches.drafting.num_accepted,
            kept=self._kept(),
            num_uncommitted_tokens=parts.committer.num_tokens,
            hedges=self._hedges(),
            limits=self._around.model.shown_limits(parts.workers.longest_session),
            transport={"conductor": self._around.transport.counts}
            | {beat.worker: beat.transport for member in parts.roster.members if (beat := member.heartbeat)},
        )

    def _routes(self) -> tuple[RouteStatus, ...]:
        routes = self._parts.scheduler.routes
        return tuple(
            RouteStatus(
                workers=tuple(worker.name for worker in route.workers),
                blocks=tuple(worker.blocks for worker in route.workers),
                num_sessions=len(routes.lane(route).running),
                num_in_flight=len(routes.lane(route).in_flight),
            )
            for route in routes.open_routes
        )

    def _stage(self, member: Member, now: float) -> StageStatus:
        record, scheduler, key = member.record, self._parts.scheduler, member.record.instance
        assert record.blocks is not None
        workers = self._parts.workers
        is_on_trial = key in workers.health.on_trial
        state = "suspended" if scheduler.routes.find_suspended(key) else "trial" if is_on_trial else record.state
        return StageStatus(
            worker=record.worker,
            instance=key,
            blocks=record.blocks,
            state=state,
            reason=workers.reason(key),
            kv_capacity_tokens=record.kv_capacity_tokens,
            kv_used_tokens=scheduler.ledger.needed_tokens(key),
            kv_kept_tokens=scheduler.ledger.kept_tokens(key),
            busy=self._share("busy_s", key, now),
            bubble=self._share("bubble_s", key, now),
            totals=_totals(member.heartbeat),
        )

    def _vision(self, now: float) -> tuple[VisionStatus, ...]:
        return tuple(
            VisionStatus(
                worker=worker.record.worker,
                instance=worker.record.instance,
                state=self._parts.workers.vision.state(worker),
                reason=self._parts.workers.vision.health.reason(worker.record.instance),
                num_preparing=worker.num_requests,
                num_overtaken=worker.num_overtaken_in_all,
                busy=self._share("busy_s", worker.record.instance, now),
                totals=_totals(self._parts.roster.heartbeat(worker.record.instance)),
            )
            for worker in self._parts.workers.vision.workers
        )

    def _kept(self) -> KeptCounts:
        kept = self._parts.scheduler.kept
        return KeptCounts(
            num_prefixes=len(kept),
            num_tokens=kept.num_tokens,
            num_hits=kept.num_hits,
            num_hit_tokens=kept.num_hit_tokens,
            num_evictions=kept.num_evictions,
        )

    def _hedges(self) -> HedgeCounts:
        hedging = self._parts.workers.vision.hedging
        return HedgeCounts(num_requests=hedging.num_requests, num_hedges=hedging.num_hedges, num_won=hedging.num_won)

    def _share(self, field: Literal["busy_s", "bubble_s"], key: str, now: float) -> float:
        """Return the share of the last seconds that a field of a worker's heartbeats has grown by."""
        heartbeat = self._parts.roster.heartbeat(key)
        rate = self._shares[field, key]
        return min(1.0, rate.observe(getattr(heartbeat, field), now)) if heartbeat else 0.0

    def _num_sessions(self) -> dict[str, int]:
        scheduler, live = self._parts.scheduler, self._parts.live
        return {
            "preparing": live.count("preparing"),
            "waiting": scheduler.num_waiting,
            "running": scheduler.num_running,
            "recovering": live.count("recovering"),
            "finishing": live.count("finishing"),
        }

    async def _num_waiting(self) -> int:
        try:
            return (await self._parts.queue.depth()).num_waiting
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
