"""Moves microbatches: what the scheduler plans goes out, answers come back in. Owns the scheduler.

    start, join, suspend … ──► scheduler ──plan──► envelope ──► first stage of a route
                                   ▲                                   ┊
          Generation ◄─ tokens ────┴──complete◄── results ◄────────── last stage

Everything that changes the scheduler passes through here, so that sessions which it lets go are told, and the next
step is planned at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import structlog

from broker_pipeline.conductor.broadcast_event import BroadcastEvent
from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.errors import (
    DeadlineExceededError,
    Failure,
    LeaseLostError,
    SlowConsumerError,
    TransportError,
)
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.scheduling.planned_batch import Lost, Outcome, PlannedBatch
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.tracing.activities import BUILD, COMPLETE, PLAN
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_EXPIRY_POLL_S = 0.1
_MAX_RESULT_BYTES = 64 * 2**20


class Dispatcher:
    """The conductor's step loop."""

    def __init__(
        self, transport: Transport, scheduler: Scheduler, builder: EnvelopeBuilder, committer: Committer
    ) -> None:
        self.scheduler = scheduler
        self.changed = BroadcastEvent()
        """Fires when workers come or go."""
        self.num_tokens = 0
        """Tokens sampled so far."""
        self.is_paused = False
        """Whether nothing is to be sent, since the broker is being found again."""
        self.longest_session = 0
        """Tokens of the longest session that any route could hold so far."""
        self._transport = transport
        self._builder = builder
        self._committer = committer
        self._generations: dict[str, Generation] = {}
        self._wake = asyncio.Event()

    # --- sessions ---------------------------------------------------------------------------------------------------

    def start(self, generation: Generation) -> None:
        """Queue a session for the stages; its end is told to the generation."""
        self._generations[generation.job_id] = generation
        if lost := self.scheduler.add(generation.session, time.monotonic()):
            self._tell([lost])
        self.wake()

    def stop(self, session: str) -> None:
        """Let go of a session, wherever it is."""
        self._generations.pop(session, None)
        self.scheduler.release(session)
        self.wake()

    def refuse(self, job_id: str, attempt: int) -> None:
        """End the attempt of a job whose tokens Redis does not take."""
        generation = self._generations.get(job_id)
        if generation is not None and generation.attempt == attempt:
            self.stop(job_id)
            generation.refuse()

    def is_usable(self, route: Route) -> bool:
        """Whether every worker of a route is there."""
        return self.scheduler.routes.is_usable(route)

    def wake(self) -> None:
        """Plan again soon."""
        self._wake.set()

    # --- workers ----------------------------------------------------------------------------------------------------

    def join(self, worker: StageInfo) -> None:
        """Use a stage worker."""
        self.scheduler.join(worker)
        self._workers_changed()

    def drain(self, key: str) -> None:
        """Give a stage worker no new sessions."""
        self.scheduler.drain(key)
        self._workers_changed()

    def suspend(self, key: str, failure: Failure) -> None:
        """Stop using a stage worker until it answers again."""
        lost = self.scheduler.suspend(key, failure)
        log.warning("worker_suspended", instance=key, num_sessions_lost=len(lost), reason=failure.message)
        self._tell(lost)
        self._workers_changed()

    def leave(self, key: str, failure: Failure) -> None:
        """Forget a stage worker."""
        self._tell(self.scheduler.leave(key, failure))
        self._workers_changed()

    def suspend_all(self, failure: Failure) -> None:
        """Stop using every stage worker until it answers again: messages in flight may be gone."""
        for worker in self.scheduler.routes.usable:
            self.suspend(worker.key, failure)

    def probe(self, key: str) -> None:
        """Ask a suspended worker whether it still computes; its answer makes it usable again."""
        self.scheduler.batches.ask(key)
        self.wake()

    # --- loops ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send, receive and watch deadlines until cancelled.

        Raises (in a group):
            LeaseLostError: a stage obeys a newer epoch.
            TransportError: the broker connection is gone for good.
        """
        results = self._transport.subscribe(
            self._builder.reply, MicrobatchResult, max_pending_bytes=_MAX_RESULT_BYTES, on_dropped=self._on_dropped
        )
        async with results as messages, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._plan_and_send(), name="send")
            tasks.create_task(self._watch_deadlines(), name="deadlines")
            async for message in messages:
                with tracer.measure(COMPLETE, epoch=message.body.epoch, microbatch=message.body.microbatch):
                    self._receive(message.body)

    async def _plan_and_send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.is_paused or not self._transport.is_connected:
                continue  # woken again once the broker is back
            await self._committer.room()
            started = tracer.now()
            planned = self.scheduler.plan(time.monotonic())
            tracer.span(PLAN, started, num_microbatches=len(planned))
            for microbatch in planned:
                await self._send(microbatch)

    async def _send(self, microbatch: PlannedBatch) -> None:
        started = tracer.now()
        envelope, tensors = self._builder.build(microbatch, time.monotonic())
        tracer.span(
            BUILD, started, epoch=envelope.epoch, microbatch=microbatch.number, num_tokens=microbatch.num_tokens
        )
        try:
            await self._transport.publish(envelope.route[0], envelope, tensors)
        except TransportError as error:
            log.warning("microbatch_not_sent", microbatch=microbatch.number, reason=error.message)
            self._tell(self.scheduler.fail_microbatch(microbatch.number, error.to_failure()))

    def _receive(self, result: MicrobatchResult) -> None:
        if result.epoch != self._builder.epoch:
            log.info("result_of_another_epoch", epoch=result.epoch, microbatch=result.microbatch)
            return
        if result.failure is not None:
            self._look_at_failure(result, result.failure)
        outcome = self.scheduler.complete(result, time.monotonic())
        self._rejoin(outcome)
        for sampled in outcome.sampled:
            self._take(sampled.session.key.session, sampled.token)
        self._tell(outcome.lost)
        self.wake()

    def _take(self, session: str, token: SampledToken) -> None:
        generation = self._generations[session]
        generation.take(token)
        self.num_tokens += 1
        if generation.is_finished:
            self.stop(session)
            generation.end()

    def _look_at_failure(self, result: MicrobatchResult, failure: Failure) -> None:
        log.warning(
            "microbatch_failed",
            microbatch=result.microbatch,
            worker=result.worker,
            code=failure.code,
            reason=failure.message,
        )
        if failure.code == "stale_epoch":
            raise LeaseLostError(f"{result.worker} obeys another conductor: {failure.message}")

    def _rejoin(self, outcome: Outcome) -> None:
        """A suspended worker that has answered what it was asked alone is usable again."""
        if outcome.microbatch is None or len(outcome.microbatch.route) > 1:
            return
        (worker,) = outcome.microbatch.route.workers
        if self.scheduler.routes.find_suspended(worker.key):
            log.info("worker_answers_again", worker=worker.name, instance=worker.key)
            self.join(worker)

    def _give_up(self, number: int) -> None:
        """Lose a microbatch that was overtaken along its own way."""
        error = TransportError(f"microbatch {number} was lost on its way")
        lost = self.scheduler.fail_microbatch(number, error.to_failure())
        if lost:
            log.warning("microbatch_lost", microbatch=number, num_sessions_lost=len(lost))
        self._tell(lost)
        self.wake()

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_POLL_S)
            if self.is_paused or not self._transport.is_connected:
                continue
            batches = self.scheduler.batches
            for probe in batches.late_probes(time.monotonic()):
                await self._send(probe)
            num_in_flight = len(batches)
            for microbatch in batches.overtaken(time.monotonic()):
                self._give_up(microbatch.number)
            late = batches.expired(time.monotonic())
            if len(batches) < num_in_flight:
                self.wake()  # what waited behind a forgotten one, closes above all, can go now
            for microbatch in late:
                error = DeadlineExceededError(
                    f"microbatch {microbatch.number} ({microbatch.num_tokens} tokens) was not answered within "
                    f"{microbatch.deadline - microbatch.sent_at:.1f} s on {microbatch.route}"
                )
                log.warning("deadline_passed", microbatch=microbatch.number, route=str(microbatch.route))
                for worker in microbatch.route.workers:
                    self.suspend(worker.key, error.to_failure())

    def _on_dropped(self, error: SlowConsumerError, result: MicrobatchResult | None) -> None:
        log.error("result_dropped", reason=error.message, microbatch=result.microbatch if result else None)
        if result is not None:
            self._tell(self.scheduler.fail_microbatch(result.microbatch, error.to_failure()))

    # --- telling ----------------------------------------------------------------------------------------------------

    def _tell(self, lost: Iterable[Lost]) -> None:
        for each in lost:
            if generation := self._generations.pop(each.session.key.session, None):
                generation.end(each)

    def _workers_changed(self) -> None:
        self.longest_session = max(self.longest_session, self.scheduler.longest_session())
        self.changed.fire()
        self.wake()
