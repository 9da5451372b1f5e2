"""The workers of one pipeline as its conductor may use them at this moment.

             join                   suspend: silent, late, or to blame             leave
    record ────────► used on routes ──────────────────────────► suspended ──────────────► gone
                          ▲                                         │
                          └───────────── rejoin: it answers ◄───────┘   `ask` with the next plan

A stage that was to blame (`WorkerHealth`) is asked when its backoff is over, or when there is no route without it, and
is on trial then. One without which there is no route is never suspended for that.

Whatever a change loses is told to its generation, whoever waits for workers is woken, and the next step is planned.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.workers.vision_pool import VisionPool
from broker_pipeline.conductor.workers.worker_health import WorkerHealth
from broker_pipeline.errors import Failure, PipelineError, RouteLostError, StageError
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.process.broadcast_event import BroadcastEvent
from broker_pipeline.scheduling.planned_batch import Lost, Outcome, PlannedBatch
from broker_pipeline.scheduling.policies.route_choice import Unwanted
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.scheduler import Scheduler

log = structlog.get_logger()

_EXPECTED_S = 2.0
"""How long one is waited for that is to come, or to come back: a handshake's time, that of two or three probes, or that
until a worker has written a record again which Redis had lost, and the registry is looked at."""


class Workers:
    """Stages through the scheduler, vision workers through their pool."""

    def __init__(
        self,
        scheduler: Scheduler,
        generations: Generations,
        plan_due: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
        *,
        longest_silence_s: float = _EXPECTED_S,
    ) -> None:
        """Set `plan_due` whenever there may be something else to send.

        It takes `longest_silence_s` until a worker that is not heard is known as silent.
        """
        self.changed = BroadcastEvent()
        """Fires when workers come or go."""
        self.health = WorkerHealth(clock=clock)
        """That of the stages."""
        self.vision = VisionPool(self.changed, clock)
        self.is_paused = False
        """Whether nothing is to be sent, since the broker is being found again."""
        self.longest_session = 0
        """Tokens of the longest session that any route could hold so far."""
        self._scheduler = scheduler
        self._generations = generations
        self._plan_due = plan_due
        self._clock = clock
        self._away_s = max(_EXPECTED_S, longest_silence_s)
        self._reasons: dict[str, str] = {}
        self._expected: dict[str, float] = {}
        """Until when anybody waits for workers that have yet to answer their first handshake, for those that were just
        suspended or fell silent, or were not heard since an outage, and for whoever may not be in the registry yet."""

    @property
    def suspended(self) -> tuple[StageInfo, ...]:
        """Stages that did not answer and have yet to do so."""
        return self._scheduler.routes.suspended

    def is_usable(self, route: Route) -> bool:
        """Whether every worker of a route is there."""
        return self._scheduler.routes.is_usable(route)

    def has_route_without(self, keys: Collection[str]) -> bool:
        """Whether there is a route that some stages are not on."""
        return any(not set(keys).intersection(route.key) for route in self._scheduler.routes.open_routes)

    def unwanted(self, failed: Collection[str]) -> Unwanted:
        """Return what a session that has `failed` on some stages should rather not meet."""
        busy = {key for key in self.health.on_trial if self._scheduler.num_sessions(key)}
        return Unwanted(failed, self.health.spared.union(busy))

    def forget(self, session: str) -> None:
        """Hold against nobody any more what a job met that has ended."""
        self.health.dismiss(session)
        self.vision.health.dismiss(session)

    def reason(self, key: str) -> str:
        """Say why a stage is suspended or on trial, or fails everybody; empty where nothing is wrong."""
        return self._reasons.get(key, "") or self.health.reason(key)

    def names(self, keys: Collection[str]) -> list[str]:
        """Return the names of those of these workers that are there."""
        routes = self._scheduler.routes
        names = {stage.key: stage.name for stage in (*routes.usable, *routes.suspended)}
        names |= {each.record.instance: each.record.worker for each in self.vision.workers}
        return sorted(names[key] for key in keys if key in names)

    # --- one worker -------------------------------------------------------------------------------------------------

    def expect(self, instance: str, for_s: float = _EXPECTED_S) -> None:
        """Note that a worker may soon be there, or be there again."""
        now = self._clock()
        self._expected = {each: until for each, until in self._expected.items() if until > now}
        self._expected[instance] = now + for_s

    def expect_no_more(self, instance: str) -> None:
        """Note what came of that, after the worker was put to use if it is."""
        if self._expected.pop(instance, None) is not None:
            self.changed.fire()

    async def expected_are_there(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Wait until whoever is expected is there, is not, or has had its time, unless who is there `is_enough`.

        It takes `_EXPECTED_S`, or as long as anybody is expected by now, at most, whoever is expected meanwhile: others
        on the same route may go as one comes.
        """
        now = self._clock()
        longest_s = max([_EXPECTED_S, *(until - now for until in self._expected.values())])
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while not is_enough() and any(until > self._clock() for until in self._expected.values()):
                    await self.changed.wait()

    def join(self, record: WorkerRecord) -> None:
        """Use a worker."""
        if record.role == "stage":
            self._scheduler.join(StageInfo.from_record(record))
        self.update(record)

    def update(self, record: WorkerRecord) -> None:
        """Note a worker's state: one that drains gets no new sessions."""
        if record.role == "vision":
            self.vision.update(record)
            return
        if record.state == "draining":
            self._scheduler.drain(record.instance)
        self._stages_changed()

    def leave(self, record: WorkerRecord, reason: str) -> None:
        """Forget a worker."""
        if record.role == "vision":
            self.vision.leave(record.instance)
            self.expect_no_more(record.instance)
            return
        self.health.leave(record.instance)
        self._reasons.pop(record.instance, None)
        failure = StageError(f"{record.worker} is gone: {reason}").to_failure()
        self._tell(self._scheduler.leave(record.instance, failure), record)
        self.expect_no_more(record.instance)
        self._stages_changed()

    def note_alive(self, record: WorkerRecord, heartbeat: Heartbeat) -> None:
        """Note a sign of life. It is no answer: a stage that was suspended has to compute something first."""
        self.vision.hear(record, heartbeat)
        if record.role == "vision":
            self.vision.set_alive(record.instance, is_alive=True)
            self.expect_no_more(record.instance)

    def note_silent(self, record: WorkerRecord, error: PipelineError) -> None:
        """Note that a worker gives no sign of life."""
        if record.role != "vision":
            self.suspend(record.instance, error, record)
        elif self.vision.set_alive(record.instance, is_alive=False):
            self.expect(record.instance)

    # --- stages -----------------------------------------------------------------------------------------------------

    def suspend(self, key: str, error: PipelineError, record: WorkerRecord | None = None) -> None:
        """Stop using a stage until it answers again, if it is used; `record` where its process may have died."""
        if all(worker.key != key for worker in self._scheduler.routes.usable):
            return
        lost = self._scheduler.suspend(key, error.to_failure())
        self._reasons[key] = error.message
        log.warning("worker_suspended", instance=key, num_sessions_lost=len(lost), reason=error.message)
        self._tell(lost, record)
        self.expect(key)
        self._stages_changed()

    def _leave_out(self, key: str) -> None:
        """Suspend a stage that was to blame, which its sessions are not."""
        if self.has_route_without([key]):
            error = RouteLostError(f"its computations fail: {self.health.reason(key)}")
            self.suspend(key, error)
            self.expect_no_more(key)
        else:
            self.health.leave(key)

    def _tell(self, lost: Sequence[Lost], record: WorkerRecord | None) -> None:
        """Tell generations of their loss; nobody is to blame where a suspect was prepared in the stage's process."""
        is_absolved = record is not None and self.vision.had_suspect(record)
        self._generations.tell(replace(each, is_blamed=False) if is_absolved else each for each in lost)

    def ask(self, key: str) -> None:
        """Ask a suspended stage whether it still computes, unless it has to wait for that."""
        if self._may_try(key):
            self._scheduler.batches.ask(key)
            self._plan_due.set()

    def _may_try(self, key: str) -> bool:
        return self.health.may_try(key) or not self._scheduler.routes.open_routes

    def take(self, outcome: Outcome) -> None:
        """Note what an answer says of its stages: that they answer, that they compute, whose fault a failure was."""
        microbatch = outcome.microbatch
        if microbatch is None:
            return
        if len(microbatch.route) == 1:
            self._rejoin(microbatch.route.workers[0], outcome.failure)
        if outcome.lost:
            self._note_failed(outcome.lost)
        elif self.health.awaits_success and outcome.sampled:
            self.health.succeed(microbatch.route.key)
        for session in outcome.repeated:
            for key in self.health.prove(session.key.session, session.route.key):
                self._leave_out(key)

    def _note_failed(self, lost: Sequence[Lost]) -> None:
        by_suspects: defaultdict[tuple[str, ...], list[Lost]] = defaultdict(list)
        for each in lost:
            if self.has_route_without(each.suspects):
                by_suspects[each.suspects].append(each)
            else:
                self.health.fail_alone(each.suspects, [each.session.key.session], each.failure.message)
        for suspects, failed in by_suspects.items():
            sessions = [each.session.key.session for each in failed]
            for key in self.health.fail(suspects, sessions, failed[0].failure.message):
                self._leave_out(key)

    def note_late(self, microbatch: PlannedBatch, error: PipelineError) -> None:
        """Suspend the stages of a route that has not answered in time: one of them is to blame, or its sessions."""
        sessions = [segment.session.key.session for segment in microbatch.segments]
        if sessions and self.has_route_without(microbatch.route.key):
            self.health.fail(microbatch.route.key, sessions, error.message, is_timeout=True)
        for worker in microbatch.route.workers:
            self.suspend(worker.key, error)

    def _rejoin(self, worker: StageInfo, failure: Failure | None) -> None:
        """Use a suspended stage again: it has done what it was asked alone, unless it has failed at that."""
        if not self._scheduler.routes.find_suspended(worker.key):
            return
        if failure is not None:
            self._reasons[worker.key] = f"it fails even probes: {failure.message}"
            self.expect_no_more(worker.key)
        elif self._may_try(worker.key):
            self._reasons.pop(worker.key, None)
            self.health.begin_trial(worker.key)
            log.info("worker_answers_again", worker=worker.name, instance=worker.key)
            self._scheduler.join(worker)
            self.expect_no_more(worker.key)
            self._stages_changed()

    def _stages_changed(self) -> None:
        self.longest_session = max(self.longest_session, self._scheduler.longest_session())
        self.changed.fire()
        self._plan_due.set()

    # --- the broker -------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Have nothing sent."""
        self.is_paused = True

    def resume(self, error: PipelineError, back_since: float) -> None:
        """Go on after messages may have been lost, until `back_since` by the clock of `vision`.

        Vision workers are asked again, those that are heard again, and stages have to answer first. A vision worker is
        waited for until it is known as silent: whoever failed on another has nobody else to go to.
        """
        for worker in self._scheduler.routes.usable:
            self.suspend(worker.key, error)
        self.vision.lose_requests(back_since)
        asked = [stage.key for stage in self.suspended if self.health.may_try(stage.key)]
        for key in asked:
            self.expect(key)
        for key in self.vision.away:  # those as well that fell silent before it was seen
            self.expect(key, self._away_s)
        self.is_paused = False
        self._plan_due.set()
