"""A vision worker as messages see it: prepare requests in, prepared sessions out; hellos answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import structlog

from broker_pipeline import subjects
from broker_pipeline.errors import DeadlineExceededError, Failure, PipelineError, TransportError, WorkerBusyError
from broker_pipeline.messages.control import Hello
from broker_pipeline.messages.vision import PrepareCancel, PreparedSession, PrepareRequest
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.tracing.activities import PREPARE
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Received, Transport
from stages.stage.envelope_checks import check_origin
from stages.vision.cache import VisionCache
from stages.vision.session_preparer import Prepared, SessionPreparer
from stages.vision.tower_batcher import TowerBatcher
from stages.worker.presence import Presence, answer_hellos, log_drop
from stages.worker.tensors import to_wire

log = structlog.get_logger()

_IDLE_POLL_S = 0.05
_MAX_PENDING_BYTES = 64 * 2**20


class VisionWorker:
    """Serves prepare requests until cancelled, at most `max_requests` at the same time."""

    def __init__(
        self,
        transport: Transport,
        preparer: SessionPreparer,
        batcher: TowerBatcher,
        cache: VisionCache,
        presence: Presence,
        max_requests: int,
    ) -> None:
        self._transport = transport
        self._preparer = preparer
        self._batcher = batcher
        self._cache = cache
        self._presence = presence
        self._max_requests = max_requests
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}
        """By session and attempt."""

    async def serve(self, subscribed: asyncio.Event) -> None:
        """Answer messages until cancelled; sets `subscribed` once none can be missed any more.

        Raises (in a group):
            TransportError: the broker connection is gone for good.
            ComputeError: the device is lost; only a new process can use it again.
        """
        root, subscribe = self._presence.record().subject, self._transport.subscribe
        async with (
            subscribe(
                subjects.work(root), PrepareRequest, max_pending_bytes=_MAX_PENDING_BYTES, on_dropped=log_drop
            ) as requests,
            subscribe(subjects.cancel_work(root), PrepareCancel, on_dropped=log_drop) as cancels,
            subscribe(subjects.control(root), Hello, on_dropped=log_drop) as hellos,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._receive(requests, tasks), name="receive")
            tasks.create_task(self._cancel(cancels), name="cancels")
            tasks.create_task(self._batcher.serve(), name="tower")
            tasks.create_task(answer_hellos(hellos, self._presence, _admit_any), name="hellos")
            subscribed.set()

    async def wait_idle(self) -> None:
        """Return when no request is being worked on."""
        while self._running:  # noqa: ASYNC110 - polling while draining is simplest, and rare
            await asyncio.sleep(_IDLE_POLL_S)

    def heartbeat(self) -> Heartbeat:
        """Return how this worker is doing: sessions in work, what was encoded so far, and what was found encoded."""
        record = self._presence.record()
        return Heartbeat(
            worker=record.worker,
            instance=record.instance,
            role="vision",
            state=record.state,
            num_sessions=len(self._running),
            num_microbatches=self._batcher.num_batches,
            num_tokens=self._batcher.num_visual_rows,
            busy_s=self._batcher.busy_s,
            num_cache_hits=self._cache.num_hits,
            num_cache_misses=self._cache.num_misses,
            transport=self._transport.counts,
        )

    async def _receive(self, messages: AsyncIterator[Received[PrepareRequest]], tasks: asyncio.TaskGroup) -> None:
        async for message in messages:
            try:
                self._admit(message.body)
            except PipelineError as error:
                await self._respond(message, _failed(message.body, self._presence, error.to_failure()))
                continue
            key = message.body.session, message.body.attempt
            self._running[key] = task = tasks.create_task(self._answer(message), name=f"prepare {message.body.session}")
            task.add_done_callback(partial(self._forget, key))

    def _forget(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        if self._running.get(key) is task:
            del self._running[key]

    async def _cancel(self, messages: AsyncIterator[Received[PrepareCancel]]) -> None:
        """Stop what another worker was quicker with; pictures that other requests wait for are encoded all the same."""
        async for message in messages:
            if task := self._running.get((message.body.session, message.body.attempt)):
                log.info("prepare_cancelled", session=message.body.session, attempt=message.body.attempt)
                task.cancel()

    def _admit(self, request: PrepareRequest) -> None:
        record = self._presence.record()
        check_origin(request.version, request.pipeline, request.fingerprint, record)
        if len(self._running) >= self._max_requests:
            raise WorkerBusyError(f"{record.worker} works on {len(self._running)} requests, and takes no more at once")

    async def _answer(self, message: Received[PrepareRequest]) -> None:
        with tracer.measure(PREPARE, session=message.body.session, attempt=message.body.attempt):
            prepared = await self._prepare(message.body)
        if isinstance(prepared, Failure):
            await self._respond(message, _failed(message.body, self._presence, prepared))
        else:
            await self._respond(message, _succeeded(message.body, self._presence, prepared), prepared)

    async def _prepare(self, request: PrepareRequest) -> Prepared | Failure:
        started = time.monotonic()
        try:
            async with asyncio.timeout(request.budget_s):
                prepared = await self._preparer.prepare(request, started + request.budget_s)
        except TimeoutError:
            error: PipelineError = DeadlineExceededError(f"not prepared within {request.budget_s:g} s")
        except PipelineError as known:
            error = known
        except Exception as bug:
            # A bug met by one request must not take down the others; it is answered, and logged whole.
            log.exception("prepare_crashed", session=request.session, attempt=request.attempt)
            error = PipelineError(f"preparing the session crashed: {bug!r}")
        else:
            self._log_prepared(request, prepared, time.monotonic() - started)
            return prepared
        log.warning(
            "prepare_failed",
            session=request.session,
            attempt=request.attempt,
            code=error.code,
            reason=error.message,
            field=error.field,
        )
        return error.to_failure()

    @staticmethod
    def _log_prepared(request: PrepareRequest, prepared: Prepared, total_s: float) -> None:
        log.info(
            "session_prepared",
            session=request.session,
            attempt=request.attempt,
            num_tokens=prepared.token_ids.shape[0],
            num_visual_tokens=sum(span.count for span in prepared.visual),
            fetch_s=round(prepared.fetch_s, 4),
            preprocess_s=round(prepared.preprocess_s, 4),
            compute_s=round(prepared.compute_s, 4),
            total_s=round(total_s, 4),
        )

    @staticmethod
    async def _respond(
        message: Received[PrepareRequest], answer: PreparedSession, prepared: Prepared | None = None
    ) -> None:
        tensors = None
        if prepared is not None:
            tensors = {"token_ids": to_wire(prepared.token_ids), "positions": to_wire(prepared.positions)}
        try:
            await message.respond(answer, tensors)
        except TransportError as error:
            log.warning("answer_lost", session=answer.session, attempt=answer.attempt, reason=error.message)


def _failed(request: PrepareRequest, presence: Presence, failure: Failure) -> PreparedSession:
    return PreparedSession(
        session=request.session, attempt=request.attempt, worker=presence.record().worker, failure=failure
    )


def _succeeded(request: PrepareRequest, presence: Presence, prepared: Prepared) -> PreparedSession:
    return PreparedSession(
        session=request.session,
        attempt=request.attempt,
        worker=presence.record().worker,
        num_tokens=prepared.token_ids.shape[0],
        position_delta=prepared.position_delta,
        visual=prepared.visual,
        visual_content=prepared.visual_content,
        fetch_s=prepared.fetch_s,
        preprocess_s=prepared.preprocess_s,
        compute_s=prepared.compute_s,
    )


async def _admit_any(_: int) -> None:
    """Obey every epoch: conductors of all shares ask, and stages refuse rows that one of the past has asked for."""
