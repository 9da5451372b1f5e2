"""Moves microbatches: plan what stages compute next, send it, complete what comes back.

Generations, Workers ──► scheduler ──plan──► PlannedBatch ──send──► first stage of a route
                             ▲                                             ┊
    Generation ◄── tokens ───┴────complete◄──── MicrobatchResult ◄─── last stage
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import DeadlineExceededError, Failure, LeaseLostError, SlowConsumerError, TransportError
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.scheduling.planned_batch import PlannedBatch
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.tracing.activities import BUILD, COMPLETE, PLAN
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Received, Transport

log = structlog.get_logger()

_LOSS_POLL_S = 0.1
_MAX_RESULT_BYTES = 64 * 2**20


@dataclass(kw_only=True, eq=False)
class Dispatcher:
    """The conductor's step loop."""

    transport: Transport
    builder: EnvelopeBuilder
    scheduler: Scheduler
    workers: Workers
    generations: Generations
    committer: Committer
    plan_due: asyncio.Event
    """Set by whatever changes what there is to send."""
    clock: Callable[[], float] = time.monotonic

    # --- a step -----------------------------------------------------------------------------------------------------

    def plan(self) -> list[PlannedBatch]:
        """Return what to send now."""
        started = tracer.now()
        planned = self.scheduler.plan(self.clock())
        self.generations.tell(self.scheduler.take_resumed())
        tracer.span(PLAN, started, num_microbatches=len(planned))
        return planned

    async def send(self, microbatch: PlannedBatch) -> None:
        """Send a microbatch to its first stage; one that cannot be sent is lost."""
        started = tracer.now()
        envelope, tensors = self.builder.build(microbatch, self.clock())
        tracer.span(
            BUILD, started, epoch=envelope.epoch, microbatch=microbatch.number, num_tokens=microbatch.num_tokens
        )
        try:
            await self.transport.publish(envelope.route[0], envelope, tensors)
        except TransportError as error:
            self.generations.give_up(microbatch.number, error)

    def complete(self, result: MicrobatchResult) -> None:
        """Take in an answer. Raises `LeaseLostError` when the stage obeys a newer epoch."""
        if result.epoch != self.builder.epoch:
            log.info("result_of_another_epoch", epoch=result.epoch, microbatch=result.microbatch)
            return
        if result.failure is not None:
            _check_failure(result, result.failure)
        outcome = self.scheduler.complete(result, self.clock())
        self.workers.take(outcome)
        for sampled in outcome.sampled:
            self.generations.take(sampled)
        self.generations.tell(outcome.lost)
        self.plan_due.set()

    # --- what does not come back ------------------------------------------------------------------------------------

    def give_up_late(self) -> list[PlannedBatch]:
        """Give up what is lost, suspend the workers of what is past its deadline; return probes to send."""
        now, batches = self.clock(), self.scheduler.batches
        num_in_flight = len(batches)
        for microbatch in batches.overtaken(now):
            self.generations.give_up(microbatch.number, TransportError("a probe sent after it came back before it"))
        for microbatch in batches.expired(now):
            log.warning("deadline_passed", microbatch=microbatch.number, route=str(microbatch.route))
            self.workers.note_late(microbatch, _too_late(microbatch))
        self.generations.tell(self.scheduler.leave_stragglers(now))
        if len(batches) < num_in_flight or batches.has_refused_closes:
            self.plan_due.set()  # what waited behind a forgotten one, closes above all, can go now
        return batches.late_probes(now)

    def drop(self, error: SlowConsumerError, result: MicrobatchResult | None) -> None:
        """Give up a microbatch whose answer came faster than answers are read."""
        log.error("result_dropped", reason=error.message, microbatch=result.microbatch if result else None)
        if result is not None:
            self.generations.give_up(result.microbatch, error)

    # --- loops ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Plan, send and complete until cancelled.

        Raises (in a group):
            LeaseLostError: a stage obeys a newer epoch.
            TransportError: the broker connection is gone for good.
        """
        results = self.transport.subscribe(
            subjects.all_results(self.builder.results),
            MicrobatchResult,
            max_pending_bytes=_MAX_RESULT_BYTES,
            on_dropped=self.drop,
        )
        async with results as messages, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_sending(), name="send")
            tasks.create_task(self._watch_deadlines(), name="deadlines")
            async for message in messages:
                if self._is_forged(message):
                    continue
                with tracer.measure(COMPLETE, epoch=message.body.epoch, microbatch=message.body.microbatch):
                    self.complete(message.body)

    def _is_forged(self, message: Received[MicrobatchResult]) -> bool:
        """Whether whoever sent a result was not told where this microbatch is answered."""
        result = message.body
        is_ours = result.epoch == self.builder.epoch
        if not is_ours or message.subject.endswith(self.builder.reply_to(result.microbatch)):
            return False
        log.error("result_forged", subject=message.subject, microbatch=result.microbatch, worker=result.worker)
        return True

    async def _keep_sending(self) -> None:
        while True:
            await self.plan_due.wait()
            self.plan_due.clear()
            if self._can_send():  # else it is set again once the broker is back
                await self.committer.room()
                for microbatch in self.plan():
                    await self.send(microbatch)

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(_LOSS_POLL_S)
            if self._can_send():
                for probe in self.give_up_late():
                    await self.send(probe)

    def _can_send(self) -> bool:
        return self.transport.is_connected and not self.workers.is_paused


def _check_failure(result: MicrobatchResult, failure: Failure) -> None:
    log.warning(
        "microbatch_failed",
        microbatch=result.microbatch,
        worker=result.worker,
        code=failure.code,
        reason=failure.message,
    )
    if failure.code == "stale_epoch":
        raise LeaseLostError(f"{result.worker} obeys another conductor: {failure.message}")


def _too_late(microbatch: PlannedBatch) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"microbatch {microbatch.number} ({microbatch.num_tokens} tokens) was not answered within "
        f"{microbatch.deadline - microbatch.sent_at:.1f} s on {microbatch.route}"
    )
