"""Asks vision workers to prepare sessions: directed to the least loaded one, and to another when that one vanishes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.workers.vision_pool import VisionInfo
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import (
    MalformedEnvelopeError,
    NoResponderError,
    PipelineError,
    StageError,
    TransportError,
    WorkerBusyError,
    error_from_failure,
)
from broker_pipeline.messages.vision import PreparedSession, PrepareRequest
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt
from broker_pipeline.wire.transport import Received, Transport

log = structlog.get_logger()

_GRACE_S = 2.0  # for the answer's way back, beyond what the worker is given


@dataclass(frozen=True, slots=True)
class PrepareLimits:
    """How many tries may fail in a row, and how many seconds lie between two."""

    max_tries: int = 3
    first_pause_s: float = 0.1
    longest_pause_s: float = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Preparer:
    """Gets prompts, and their visual rows to the stages of a route."""

    transport: Transport
    workers: Workers
    vocab_size: int
    limits: PrepareLimits = PrepareLimits()

    async def prepare(self, request: PrepareRequest, route: Route) -> PreparedPrompt:
        """Have one session prepared for a route; waits while there is no vision worker.

        A worker that vanishes, is busy or cannot be reached yet, costs no try. Raises what the vision worker failed
        with, and `StageError` when the route is lost meanwhile.
        """
        tried: set[str] = set()
        num_tries = 0
        pause_s = self.limits.first_pause_s
        while True:
            with self.workers.vision.borrow(avoid=tried) as worker:
                if worker is None:
                    await self.workers.changed.wait()
                    self._require(route)
                    continue
                tried.add(worker.record.instance)
                try:
                    return await self._ask(worker, request, route)
                except _WorkerLostError:
                    log.info("prepare_moved", session=request.session, worker=worker.record.worker)
                    continue
                except (WorkerBusyError, NoResponderError):
                    self._require(route)
                except PipelineError as error:
                    self._require(route)
                    num_tries += self.transport.is_connected
                    if not error.retryable or num_tries >= self.limits.max_tries:
                        raise
                    log.info("prepare_tried_again", session=request.session, code=error.code, reason=error.message)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self.limits.longest_pause_s)

    async def _ask(self, worker: VisionInfo, request: PrepareRequest, route: Route) -> PreparedPrompt:
        num_lost = worker.num_lost
        asking = asyncio.ensure_future(
            self.transport.request(
                subjects.work(worker.record.subject),
                request,
                reply_type=PreparedSession,
                timeout_s=request.budget_s + _GRACE_S,
            )
        )
        try:
            while not asking.done():
                await self._either(asking)
                if asking.done():
                    break
                self._require(route)
                if worker.num_lost != num_lost:
                    raise _WorkerLostError(f"{worker.record.worker} is gone")
            return self._read(asking.result(), request)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _either(self, asking: asyncio.Future[Received[PreparedSession]]) -> None:
        """Return when there is an answer, or when workers have come or gone."""
        changed = asyncio.ensure_future(self.workers.changed.wait())
        waited: list[asyncio.Future[Any]] = [asking, changed]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()

    def _require(self, route: Route) -> None:
        if not self.workers.is_usable(route):
            raise StageError(f"route {route} was lost while the session was prepared")

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


class _WorkerLostError(TransportError):
    """The vision worker that was asked is gone."""
