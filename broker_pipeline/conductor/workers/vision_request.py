"""One request to one vision worker, from the question to a prompt that can be believed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.interruption import Interruption
from broker_pipeline.conductor.workers.vision_info import VisionInfo
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


class AskAgainError(TransportError):
    """Nobody has the request, and that is not its fault."""


@dataclass(slots=True, kw_only=True, eq=False)
class VisionRequest:
    """What a worker is asked, and who and when once it is."""

    transport: Transport
    workers: Workers
    vocab_size: int
    request: PrepareRequest
    route: Route
    worker: VisionInfo | None = None
    asked_at: float = math.inf

    @property
    def timeout_s(self) -> float:
        """Seconds after which no answer is expected any more."""
        return self.request.budget_s + _GRACE_S

    async def ask(self, worker: VisionInfo) -> PreparedPrompt:
        """Ask a worker, and tell the pool how that went.

        Raises `AskAgainError`, and what `Preparer.prepare` raises.
        """
        if not worker.is_usable:
            raise AskAgainError(f"{worker.record.worker} is gone")
        vision = self.workers.vision
        self.worker, self.asked_at = worker, vision.clock()
        try:
            prompt = await self._ask(worker)
        except PipelineError as error:
            self.require_route()
            if isinstance(error, WorkerBusyError | NoResponderError) or not self.transport.is_connected:
                raise AskAgainError(error.message) from error
            vision.note_failed(worker, self.request.session, error)
            raise
        vision.note_prepared(worker, self.request.session)
        return prompt

    async def _ask(self, worker: VisionInfo) -> PreparedPrompt:
        num_deaths, num_outages, interruption = worker.num_deaths, worker.num_outages, Interruption()

        def look() -> None:
            if not self.workers.is_usable(self.route):
                interruption.interrupt(_lost(self.route))
            elif worker.num_deaths != num_deaths:
                gone = f"{worker.record.worker} died, or fell silent, while it prepared the session"
                interruption.interrupt(WorkerLostError(gone))
            elif worker.num_outages != num_outages:
                interruption.interrupt(AskAgainError("the broker was away"))

        with self.workers.changed.heard_by(look), interruption:
            received = await self.transport.request(
                subjects.work(worker.record.subject),
                self.request,
                reply_type=PreparedSession,
                timeout_s=self.timeout_s,
            )
        worker.note_answer(self.workers.vision.clock())
        return self._read(received)

    def require_route(self) -> None:
        """Raise `RouteLostError` when there is nothing to prepare for any more."""
        if not self.workers.is_usable(self.route):
            raise _lost(self.route)

    def _read(self, received: Received[PreparedSession]) -> PreparedPrompt:
        answer = received.body
        if answer.failure is not None:
            raise error_from_failure(answer.failure)
        prompt = read_prompt(received, self.vocab_size)
        log.debug(
            "session_prepared",
            session=self.request.session,
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
    return PreparedPrompt(token_ids, positions, answer.position_delta, answer.visual, answer.visual_content)


def _check_spans(answer: PreparedSession) -> None:
    if answer.visual_content and len(answer.visual_content) != len(answer.visual):
        raise MalformedEnvelopeError(
            f"{answer.worker} sent {len(answer.visual)} visual spans and the content of {len(answer.visual_content)}",
            field="visual_content",
        )
    free_from = 0
    for span in answer.visual:
        if span.offset < free_from or span.offset + span.count > answer.num_tokens:
            raise MalformedEnvelopeError(
                f"{answer.worker} sent visual spans that overlap or leave the prompt", field="visual"
            )
        free_from = span.offset + span.count


def _lost(route: Route) -> RouteLostError:
    return RouteLostError(f"route {route} was lost while the session was prepared")
