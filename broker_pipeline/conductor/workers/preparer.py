"""Has sessions prepared: by the least loaded vision worker, and by a second one as well when that is late.

    first    ────────────┬─────────────────── taken back: no answer of it is waited for, and it is not to blame
                         │ late_after_s
    second               └──────► prompt      the first prompt counts; an error only when nobody can answer any more

What follows when all who were asked have died or failed, `RetryPolicy` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.workers.vision_info import VisionInfo
from broker_pipeline.conductor.workers.vision_request import AskAgainError, VisionRequest
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import PipelineError, RouteLostError, TransportError, WorkerLostError
from broker_pipeline.messages.vision import PrepareCancel, PrepareRequest
from broker_pipeline.scheduling.policies.retries import may_be_the_workers
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PreparePauses:
    """Seconds before a worker that was busy, or could not be reached, is asked again: the first and the longest."""

    first_s: float = 0.1
    longest_s: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Vision workers, by instance, that have tried a session, and those that could not be reached, were busy or silent.

    These say nothing of the session: who has failed with it must not be asked once more while they may yet answer. One
    that died comes again as another instance; one that fell silent and is heard again has not died of the session.
    """

    tried: set[str]
    unreached: set[str] = field(default_factory=set)

    @contextmanager
    def noting(self, worker: VisionInfo) -> Iterator[None]:
        """Note what comes of asking a worker."""
        key = worker.record.instance
        is_new = key not in self.tried
        self.tried.add(key)
        try:
            yield
        except (AskAgainError, RouteLostError, WorkerLostError):
            self.unreached.add(key)
            if is_new:
                self.tried.remove(key)
            raise


@dataclass(frozen=True, slots=True, eq=False)
class Preparer:
    """Gets prompts, and their visual rows to the stages of a route."""

    transport: Transport
    workers: Workers
    vocab_size: int
    pauses: PreparePauses = PreparePauses()

    async def prepare(
        self, request: PrepareRequest, route: Route, *, tried: set[str], is_alone: bool = False
    ) -> PreparedPrompt:
        """Have one session prepared for a route; waits while there is no vision worker, or none takes more.

        Workers not in `tried`, to which those are added that took the request, are asked first; `is_alone` waits for
        one that has nothing else in hand. One that is busy or cannot be reached yet is asked after those that were not
        asked, and before those that have tried; everything is asked again after the broker was away.

        Raises:
            WorkerLostError: the worker died, or fell silent, before it answered.
            RouteLostError: the route is lost.
            PipelineError: what the vision worker failed with, or the way there.
        """
        pause_s, asked = self.pauses.first_s, Asked(tried)
        while True:
            asking = VisionRequest(
                transport=self.transport,
                workers=self.workers,
                vocab_size=self.vocab_size,
                request=request,
                route=route,
            )
            with suppress(AskAgainError):
                return await (self._ask(asking, asked, is_alone=True) if is_alone else self._race(asking, asked))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self.pauses.longest_s)

    async def _race(self, first: VisionRequest, known: Asked) -> PreparedPrompt:
        """Ask one worker, and a second when it is late; return the first prompt."""
        vision, errors = self.workers.vision, list[PipelineError]()
        asked = {asyncio.create_task(self._ask(first, known)): first}
        pending = set(asked)
        try:
            while pending:
                late_s = vision.hedging.late_after_s if len(asked) == 1 else None
                done, pending = await asyncio.wait(pending, timeout=late_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (error := _passing_error(task)) is None:
                        vision.hedging.note_request(vision.clock() - first.asked_at)
                        await self._take_back(first, asked[task], [asked[other] for other in pending])
                        return task.result()
                    errors.append(error)
                if not done and (worker := self._second(first, known)) is not None:
                    second = replace(first, worker=worker, asked_at=vision.clock())
                    hedge = asyncio.create_task(self._ask_second(second, worker, known))
                    asked[hedge] = second
                    pending.add(hedge)
        finally:
            for task in pending:
                task.cancel()
            if pending or len(asked) > 1:
                await asyncio.gather(*asked, return_exceptions=True)
        raise next((error for error in errors if not isinstance(error, AskAgainError)), errors[0])

    async def _ask(self, asking: VisionRequest, asked: Asked, *, is_alone: bool = False) -> PreparedPrompt:
        """Ask the worker that will be done soonest."""

        async def change() -> None:
            """Wait until workers have come or gone, or one is free."""
            await self.workers.changed.wait()
            asking.require_route()

        asking.require_route()
        near = _near(asking.route)
        async with self.workers.vision.borrow(
            change, asked.tried, asked.unreached, near=near, is_alone=is_alone
        ) as worker:
            with asked.noting(worker):
                return await asking.ask(worker)

    def _second(self, first: VisionRequest, asked: Asked) -> VisionInfo | None:
        """Return who is to be asked as well; None where the first is not late, or there is nobody."""
        vision, late = self.workers.vision, first.worker
        if late is None or vision.clock() - first.asked_at < vision.hedging.late_after_s:
            return None
        return vision.second(late, asked.tried | asked.unreached, _near(first.route))

    async def _ask_second(self, asking: VisionRequest, worker: VisionInfo, asked: Asked) -> PreparedPrompt:
        log.info("vision_request_hedged", session=asking.request.session, worker=worker.record.worker)
        with self.workers.vision.lend(worker), asked.noting(worker):
            return await asking.ask(worker)

    async def _take_back(self, first: VisionRequest, winner: VisionRequest, losers: Iterable[VisionRequest]) -> None:
        """Tell those who have not answered to let the request be, but for what shows whether they ever answer."""
        vision, request = self.workers.vision, first.request
        vision.hedging.num_won += winner is not first
        for loser in losers:
            assert loser.worker is not None, "only what was asked is hedged"
            due_at = loser.asked_at + loser.timeout_s
            if loser is first and not loser.worker.note_overtaken(due_at):
                continue
            cancel = PrepareCancel(pipeline=request.pipeline, session=request.session, attempt=request.attempt)
            with suppress(TransportError):  # then it does what nobody needs
                await self.transport.publish(subjects.cancel_work(loser.worker.record.subject), cancel)


def _near(route: Route) -> str:
    return route.workers[0].device_id


def _passing_error(task: asyncio.Task[PreparedPrompt]) -> PipelineError | None:
    """Return what a request ended with where another's answer may differ; raises what would be everybody's answer."""
    error = task.exception()
    if error is None:
        return None
    if isinstance(error, PipelineError) and (error.retryable or may_be_the_workers(error.to_failure())):
        return error
    raise error
