"""The workers of one pipeline as its conductor may use them at this moment.

             join                      suspend: silent, or late                    leave
    record ────────► used on routes ──────────────────────────► suspended ──────────────► gone
                          ▲                                         │
                          └───────────── rejoin: it answers ◄───────┘   `ask` with the next plan

Whatever a change loses is told to its generation, whoever waits for workers is woken, and the next step is planned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from broker_pipeline.conductor.broadcast_event import BroadcastEvent
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.workers.vision_pool import VisionPool
from broker_pipeline.errors import PipelineError, StageError
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.scheduling.planned_batch import Lost, PlannedBatch
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.scheduler import Scheduler

log = structlog.get_logger()


class Workers:
    """Stages through the scheduler, vision workers through their pool."""

    def __init__(self, scheduler: Scheduler, generations: Generations, plan_due: asyncio.Event) -> None:
        """Set `plan_due` whenever there may be something else to send."""
        self.changed = BroadcastEvent()
        """Fires when workers come or go."""
        self.vision = VisionPool(self.changed)
        self.is_paused = False
        """Whether nothing is to be sent, since the broker is being found again."""
        self.longest_session = 0
        """Tokens of the longest session that any route could hold so far."""
        self._scheduler = scheduler
        self._generations = generations
        self._plan_due = plan_due

    @property
    def suspended(self) -> tuple[StageInfo, ...]:
        """Stages that did not answer and have yet to do so."""
        return self._scheduler.routes.suspended

    def is_usable(self, route: Route) -> bool:
        """Whether every worker of a route is there."""
        return self._scheduler.routes.is_usable(route)

    # --- one worker -------------------------------------------------------------------------------------------------

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
            return
        failure = StageError(f"{record.worker} is gone: {reason}").to_failure()
        self._tell(self._scheduler.leave(record.instance, failure), record)
        self._stages_changed()

    def note_alive(self, record: WorkerRecord, heartbeat: Heartbeat) -> None:
        """Note a sign of life. It is no answer: a stage that was suspended has to compute something first."""
        self.vision.hear(record, heartbeat)
        if record.role == "vision":
            self.vision.set_alive(record.instance, is_alive=True)

    def note_silent(self, record: WorkerRecord, error: PipelineError) -> None:
        """Note that a worker gives no sign of life."""
        if record.role == "vision":
            self.vision.set_alive(record.instance, is_alive=False)
        else:
            self.suspend(record.instance, error, record)

    # --- stages -----------------------------------------------------------------------------------------------------

    def suspend(self, key: str, error: PipelineError, record: WorkerRecord | None = None) -> None:
        """Stop using a stage until it answers again, if it is used; `record` where its process may have died."""
        if all(worker.key != key for worker in self._scheduler.routes.usable):
            return
        lost = self._scheduler.suspend(key, error.to_failure())
        log.warning("worker_suspended", instance=key, num_sessions_lost=len(lost), reason=error.message)
        self._tell(lost, record)
        self._stages_changed()

    def _tell(self, lost: Sequence[Lost], record: WorkerRecord | None) -> None:
        """Tell generations of their loss; nobody is to blame where a suspect was prepared in the stage's process."""
        is_absolved = record is not None and self.vision.had_suspect(record)
        self._generations.tell(replace(each, is_blamed=False) if is_absolved else each for each in lost)

    def ask(self, key: str) -> None:
        """Ask a suspended stage whether it still computes."""
        self._scheduler.batches.ask(key)
        self._plan_due.set()

    def rejoin(self, answered: PlannedBatch) -> None:
        """Use a suspended stage again if this is what it was asked alone, and has answered."""
        worker = answered.route.workers[0]
        if len(answered.route) == 1 and self._scheduler.routes.find_suspended(worker.key):
            log.info("worker_answers_again", worker=worker.name, instance=worker.key)
            self._scheduler.join(worker)
            self._stages_changed()

    def _stages_changed(self) -> None:
        self.longest_session = max(self.longest_session, self._scheduler.longest_session())
        self.changed.fire()
        self._plan_due.set()

    # --- the broker -------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Have nothing sent."""
        self.is_paused = True

    def resume(self, error: PipelineError) -> None:
        """Go on after messages may have been lost: vision workers are asked again, and stages have to answer first."""
        for worker in self._scheduler.routes.usable:
            self.suspend(worker.key, error)
        self.vision.lose_requests()
        self.is_paused = False
        self._plan_due.set()
