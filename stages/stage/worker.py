"""A stage as messages see it: envelopes in, envelopes or results out; visual rows and hellos answered.

work ─────────► check ──► inbox (bounded) ──► compute thread ──► outbox (bounded) ──► next stage or conductor
                  │                                 ▲                  │
visual rows ──────┼────► visual row buffer (bounded)┘                  └ on a GPU: waited for on the collecting thread
control ──────────┴────► hello

Loops of their own: while one microbatch is computed the next is received, checked and launched behind it,
and the last one's output is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from broker_pipeline import subjects
from broker_pipeline.errors import ComputeError, PipelineError, SlowConsumerError, TransportError, WorkerBusyError
from broker_pipeline.messages.activation import Envelope
from broker_pipeline.messages.control import Hello
from broker_pipeline.messages.vision import RowDelivery
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.tracing.activities import CHECK
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.codec import MAX_PAYLOAD_BYTES
from broker_pipeline.wire.transport import Received, Transport
from stages.stage.engine import StageEngine
from stages.stage.envelope_checks import check_envelope, check_origin, read_tensors
from stages.stage.visual_row_intake import VisualRowIntake
from stages.stage.work import Begun, Forward, Reply, StageWork, refusal
from stages.worker.compute_thread import ComputeThread
from stages.worker.epoch_fence import EpochFence
from stages.worker.presence import Presence, answer_hellos, log_drop

log = structlog.get_logger()

_OUTBOX_SIZE = 2
_IDLE_POLL_S = 0.05
_PROBE_S = 1.5
"""For which an answer to a probe waits for the broker: longer than a connection takes that is under way again."""


@dataclass(frozen=True, slots=True)
class StageLimits:
    """What may wait at a stage: checked envelopes by number and bytes, messages not yet read by bytes.

    One session's visual rows are one message, and those of a large picture are hundreds of megabytes.
    """

    max_envelopes: int = 64
    max_envelope_bytes: int = 512 * 2**20
    max_pending_bytes: int = 512 * 2**20
    max_pending_visual_row_bytes: int = MAX_PAYLOAD_BYTES + 2**20


class StageWorker:
    """Serves one stage until cancelled."""

    def __init__(
        self,
        transport: Transport,
        engine: StageEngine,
        thread: ComputeThread,
        intake: VisualRowIntake,
        fence: EpochFence,
        presence: Presence,
        limits: StageLimits | None = None,
        collector: ComputeThread | None = None,
    ) -> None:
        """`collector` waits for the device where that is not the host; without it the compute thread does all."""
        self._collector = collector
        self._transport = transport
        self._engine = engine
        self._facts = engine.facts
        self._thread = thread
        self._intake = intake
        self._fence = fence
        self._presence = presence
        self._limits = limits or StageLimits()
        self._inbox: asyncio.Queue[tuple[StageWork, int]] = asyncio.Queue(self._limits.max_envelopes)
        self._inbox_bytes = 0
        self._outbox: asyncio.Queue[tuple[StageWork, asyncio.Future[Begun | Forward | Reply | None]]] = asyncio.Queue(
            _OUTBOX_SIZE
        )
        self._dropped: asyncio.Queue[tuple[Envelope, SlowConsumerError]] = asyncio.Queue(self._limits.max_envelopes)
        self._num_unsent = 0

    async def serve(self, subscribed: asyncio.Event) -> None:
        """Answer messages until cancelled; sets `subscribed` once none can be missed any more.

        Raises (in a group):
            TransportError: the broker connection is gone for good.
            ComputeError: the device is lost; only a new process can use it again.
        """
        root, limits = self._presence.record().subject, self._limits
        subscribe = self._transport.subscribe
        async with (
            subscribe(
                subjects.work(root), Envelope, max_pending_bytes=limits.max_pending_bytes, on_dropped=self._on_dropped
            ) as envelopes,
            subscribe(
                subjects.rows(root),
                RowDelivery,
                max_pending_bytes=limits.max_pending_visual_row_bytes,
                on_dropped=log_drop,
            ) as visual_rows,
            subscribe(subjects.control(root), Hello, on_dropped=log_drop) as hellos,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._receive(envelopes), name="receive")
            tasks.create_task(self._compute(), name="compute")
            tasks.create_task(self._send(), name="send")
            tasks.create_task(self._answer_drops(), name="drops")
            tasks.create_task(self._intake.serve(visual_rows), name="visual rows")
            tasks.create_task(answer_hellos(hellos, self._presence, self._admit), name="hellos")
            subscribed.set()

    async def wait_idle(self) -> None:
        """Return when no session is open and no envelope is on its way through."""
        while self._engine.sessions.num_open or self._num_unsent:  # noqa: ASYNC110 - sessions end on another thread
            await asyncio.sleep(_IDLE_POLL_S)

    def heartbeat(self) -> Heartbeat:
        """Return how this stage is doing."""
        record = self._presence.record()
        return Heartbeat(
            worker=record.worker,
            instance=record.instance,
            role="stage",
            state=record.state,
            num_sessions=self._engine.sessions.num_open,
            kv_used_tokens=self._engine.sessions.kv_used_tokens,
            kv_kept_tokens=self._engine.sessions.kv_kept_tokens,
            num_microbatches=self._engine.num_microbatches,
            num_tokens=self._engine.num_tokens,
            busy_s=self._engine.busy_s if self._collector is not None else self._engine.occupancy.busy_s,
            bubble_s=self._engine.occupancy.bubble_s,
            queue_s=self._engine.queue_s,
            transport=self._transport.counts,
        )

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _receive(self, messages: AsyncIterator[Received[Envelope]]) -> None:
        async for message in messages:
            try:
                self._accept(message)
            except PipelineError as error:
                await self._refuse(message.body, error)
            del message  # its memory may be lent
            await asyncio.sleep(0)  # in a burst, lets `_compute` empty the inbox between two messages

    def _accept(self, message: Received[Envelope]) -> None:
        """Check an envelope and put it into the inbox."""
        received_at = time.monotonic()
        started, envelope = tracer.now(), message.body
        check_origin(envelope.version, envelope.pipeline, envelope.fingerprint, self._facts)
        self._fence.admit(envelope.epoch)
        check_envelope(envelope, self._facts)
        tensors = read_tensors(envelope, message.tensors, self._facts)
        self._require_room(message.num_bytes)
        self._inbox_bytes += message.num_bytes
        self._num_unsent += 1
        checked = tracer.now()
        tracer.span(CHECK, started, checked, epoch=envelope.epoch, microbatch=envelope.microbatch)
        self._inbox.put_nowait((StageWork(envelope, tensors, received_at, checked), message.num_bytes))

    def _require_room(self, num_bytes: int) -> None:
        if self._inbox.full() or self._inbox_bytes + num_bytes > self._limits.max_envelope_bytes:
            raise WorkerBusyError(
                f"{self._facts.worker} has {self._inbox.qsize()} microbatches of {self._inbox_bytes} bytes waiting, "
                f"and keeps up to {self._limits.max_envelopes} of {self._limits.max_envelope_bytes} bytes"
            )

    def _on_dropped(self, error: SlowConsumerError, envelope: Envelope | None) -> None:
        """Answer an envelope that found no room even before it was read, where its metadata is known."""
        log.error("envelope_dropped", reason=error.message, is_answered=envelope is not None)
        if envelope is not None and not self._dropped.full():
            self._dropped.put_nowait((envelope, error))

    async def _answer_drops(self) -> None:
        while True:
            await self._refuse(*await self._dropped.get())

    async def _admit(self, epoch: int) -> None:
        """Obey a hello's epoch; a higher one fences off the older conductor, whose sessions end."""
        if self._fence.admit(epoch):
            await self._thread.run(self._engine.sessions.follow_epoch)

    # --- through ------------------------------------------------------------------------------------------------------

    async def _compute(self) -> None:
        """Give the thread its next microbatch before it has finished the last, so that it never waits for the loop."""
        while True:
            await self._submit(*await self._inbox.get())

    async def _submit(self, work: StageWork, num_bytes: int) -> None:
        outcome: asyncio.Future[Begun | Forward | Reply | None] = (
            self._thread.submit(self._engine.begin, work)
            if self._collector is not None
            else self._thread.submit(self._engine.step, work)
        )
        await self._outbox.put((work, outcome))
        self._inbox_bytes -= num_bytes

    # --- out ----------------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            await self._send_outcome(*await self._outbox.get())
            self._num_unsent -= 1
            if self._engine.is_device_lost:
                raise ComputeError("the device no longer computes; start this worker again")

    async def _send_outcome(self, work: StageWork, pending: asyncio.Future[Begun | Forward | Reply | None]) -> None:
        outcome = await pending
        if isinstance(outcome, Begun):
            assert self._collector is not None, "only then is anything begun and not finished"
            outcome = await self._collector.run(self._engine.finish, outcome)
        if isinstance(outcome, Forward):
            await self._forward(work.envelope, outcome)
        elif isinstance(outcome, Reply):
            await self._answer(outcome, is_probe=not work.envelope.segments)

    async def _forward(self, envelope: Envelope, onward: Forward) -> None:
        try:
            await self._transport.publish(onward.envelope.route[0], onward.envelope, onward.tensors)
        except PipelineError as error:
            await self._refuse(envelope, error)

    async def _refuse(self, envelope: Envelope, error: PipelineError) -> None:
        log.warning("microbatch_refused", microbatch=envelope.microbatch, code=error.code, reason=error.message)
        await self._answer(refusal(envelope, self._facts, error))

    async def _answer(self, answer: Reply, *, is_probe: bool = False) -> None:
        """Send a result. With the broker away it is lost, like all else in flight; the conductor allows for that.

        A probe asks whether microbatches arrive here, which come over either connection: one may be back before the
        other. So it is answered once both are seen to work.
        """
        try:
            if is_probe:
                await self._transport.link.barrier(_PROBE_S)
            await self._transport.publish(answer.subject, answer.result)
        except TransportError as error:
            log.warning("result_lost", microbatch=answer.result.microbatch, reason=error.message)
