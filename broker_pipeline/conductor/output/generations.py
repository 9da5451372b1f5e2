"""The generations that the scheduler has: each is given its tokens, and told of its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.errors import PipelineError
from broker_pipeline.scheduling.planned_batch import Lost, Sampled
from broker_pipeline.scheduling.scheduler import Scheduler

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Generations:
    """Generations by session, from `start` until all tokens are there, the attempt is lost, or nobody wants it."""

    scheduler: Scheduler
    plan_due: asyncio.Event
    """Is set when there may be something else to compute."""
    clock: Callable[[], float] = time.monotonic
    num_tokens: int = 0
    """Tokens sampled so far."""
    _generations: dict[str, Generation] = field(default_factory=dict, init=False)

    def start(self, generation: Generation) -> None:
        """Queue a session for the stages; its end is told to the generation."""
        self._generations[generation.job_id] = generation
        if lost := self.scheduler.add(generation.session, self.clock()):
            self.tell([lost])
        self.plan_due.set()

    def stop(self, session: str, *, is_finished: bool = False) -> None:
        """Let go of a session, wherever it is."""
        self._generations.pop(session, None)
        self.scheduler.release(session, is_finished=is_finished)
        self.plan_due.set()

    def refuse(self, job_id: str, attempt: int) -> None:
        """End the attempt of a job whose tokens Redis does not take."""
        generation = self._generations.get(job_id)
        if generation is not None and generation.attempt == attempt:
            self.stop(job_id)
            generation.refuse()

    def take(self, sampled: Sampled) -> None:
        """Hand on a session's next tokens, as far as its output goes."""
        session = sampled.session.key.session
        generation = self._generations[session]
        for token in sampled.tokens:
            generation.take(token)
            self.num_tokens += 1
            if generation.output.finish_reason is not None:
                self.stop(session, is_finished=True)
                generation.end()
                return

    def tell(self, lost: Iterable[Lost]) -> None:
        """Tell generations that the scheduler has let go of their sessions."""
        for each in lost:
            if generation := self._generations.pop(each.session.key.session, None):
                generation.end(each)

    def give_up(self, microbatch: int, error: PipelineError) -> None:
        """Lose the sessions of a microbatch whose answer cannot come; nobody is to blame."""
        lost = self.scheduler.fail_microbatch(microbatch, error.to_failure())
        log.warning("microbatch_lost", microbatch=microbatch, num_sessions_lost=len(lost), reason=error.message)
        self.tell(lost)
