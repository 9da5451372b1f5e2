"""Asks vision workers to prepare sessions: the least loaded one. What follows when it dies, `RetryPolicy` says."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.interruption import Interruption
from broker_pipeline.conductor.workers.vision_pool import VisionInfo
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import (
    MalformedEnvelopeError,
    NoResponderError,
    PipelineError,
    RouteLostError,
    TransportError,
    WorkerBusyError,
    WorkerLostError,
    error_from_failure,
)
from broker_pipeline.messages.vision import PreparedSession, PrepareRequest
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt
from broker_pipeline.wire.transport import Received, Transport

log = structlog.get_logger()

_GRACE_S = 2.0  # for the answer's way back, beyond what the worker is given


@dataclass(frozen=True, slots=True)
class PreparePauses:
    """Seconds before a worker that was busy, or could not be reached, is asked again: the first and the longest."""

    first_s: float = 0.1
    longest_s: float = 2.0


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

        Workers not in `tried`, to which those that are asked are added, are asked first; `is_alone` waits for one that
        has nothing else in hand. One that is busy or cannot be reached yet is asked again, as is everything after the
        broker was away.

        Raises:
            WorkerLostError: the worker died, or fell silent, before it answered.
            RouteLostError: the route is lost.
            PipelineError: what the vision worker failed with, or the way there.
        """
        pause_s = self.pauses.first_s
        while True:
            with suppress(_AskAgainError):
                near = route.workers[0].device_id
                borrowing = self.workers.vision.borrow(lambda: self._change(route), tried, near=near, is_alone=is_alone)
                async with borrowing as worker:
                    return await self._try(worker, request, route, tried)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self.pauses.longest_s)

    async def _change(self, route: Route) -> None:
        """Wait until workers have come or gone, or one is free."""
        await self.workers.changed.wait()
        self._require(route)

    async def _try(self, worker: VisionInfo, request: PrepareRequest, route: Route, tried: set[str]) -> PreparedPrompt:
        if not worker.is_usable:
            raise _AskAgainError(f"{worker.record.worker} is gone")
        tried.add(worker.record.instance)
        try:
            prompt = await self._ask(worker, request, route)
        except PipelineError as error:
            self._require(route)
            if isinstance(error, WorkerBusyError | NoResponderError) or not self.transport.is_connected:
                raise _AskAgainError(error.message) from error
            self.workers.vision.note_failed(worker, request.session, error)
            raise
        self.workers.vision.note_prepared(worker, request.session)
        return prompt

    async def _ask(self, worker: VisionInfo, request: PrepareRequest, route: Route) -> PreparedPrompt:
        num_deaths, num_outages, interruption = worker.num_deaths, worker.num_outages, Interruption()

        def look() -> None:
            if not self.workers.is_usable(route):
                interruption.interrupt(_lost(route))
            elif worker.num_deaths != num_deaths:
                gone = f"{worker.record.worker} died, or fell silent, while it prepared the session"
                interruption.interrupt(WorkerLostError(gone))
            elif worker.num_outages != num_outages:
                interruption.interrupt(_AskAgainError("the broker was away"))

        with self.workers.changed.heard_by(look), interruption:
            received = await self.transport.request(
                subjects.work(worker.record.subject),
                request,
                reply_type=PreparedSession,
                timeout_s=request.budget_s + _GRACE_S,
            )
        return self._read(received, request)

    def _require(self, route: Route) -> None:
        if not self.workers.is_usable(route):
            raise _lost(route)

    def _read(self, received: Received[PreparedSession], request: PrepareRequest) -> PreparedPrompt:
        answer = received.body
        if answer.failure is not None:
            raise error_from_failure(answer.failure)
        prompt = read_prompt(received, self.vocab_size)
        log.debug(
            "session_prepared",
            session=request.session,
            worker=answer.worker,
            num_tokens=prompt.num_tokens,
            num_visual_tokens=prompt.num_visual_tokens,
        )
        return prompt


def read_prompt(received: Received[PreparedSession], vocab_size: int) -> PreparedPrompt:
    """Return the prompt that a vision worker sent. Raises `MalformedEnvelopeError` when it contradicts itself."""
    answer, tensors = received.body, received.tensors
    if set(tensors) != {"token_ids", "positions"} or not answer.num_tokens:
        raise MalformedEnvelopeError(f"{answer.worker} sent no prompt", field="tensors")
    token_ids, positions = (np.array(tensors[name].to_numpy()) for name in ("token_ids", "positions"))
    n = answer.num_tokens
    if token_ids.shape != (n,) or positions.shape != (3, n) or {token_ids.dtype, positions.dtype} != {np.dtype("i4")}:
        raise MalformedEnvelopeError(
            f"{answer.worker} sent token ids {list(token_ids.shape)} and positions {list(positions.shape)} for "
            f"{n} tokens",
            field="tensors",
        )
    if token_ids.min() < 0 or token_ids.max() >= vocab_size or positions.min() < 0:
        raise MalformedEnvelopeError(f"{answer.worker} sent token ids or positions out of range", field="tensors")
    _check_spans(answer)
    return PreparedPrompt(token_ids, positions, answer.position_delta, answer.visual)


def _check_spans(answer: PreparedSession) -> None:
    free_from = 0
    for span in answer.visual:
        if span.offset < free_from or span.offset + span.count > answer.num_tokens:
            raise MalformedEnvelopeError(
                f"{answer.worker} sent visual spans that overlap or leave the prompt", field="visual"
            )
        free_from = span.offset + span.count


def _lost(route: Route) -> RouteLostError:
    return RouteLostError(f"route {route} was lost while the session was prepared")


class _AskAgainError(TransportError):
    """Nobody has the request, and that is not its fault."""
