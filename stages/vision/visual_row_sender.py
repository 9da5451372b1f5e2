"""Gives a session's visual rows straight to the stages that need them, and waits for their receipts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import structlog
from torch import Tensor

from broker_pipeline.errors import PipelineError, TensorMismatchError, WorkerBusyError, error_from_failure
from broker_pipeline.messages.vision import PrepareRequest, RowDelivery, RowReceipt, RowTarget
from broker_pipeline.tracing.activities import DELIVER
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Transport
from stages.qwen3_vl.vision import TowerOutput
from stages.stage.visual_row_intake import EMBEDS, VisualRowIntake, level_name
from stages.worker.tensors import to_wire
from stages.worker.together import together

log = structlog.get_logger()

_PAUSE_S = 0.2
_MAX_UNDER_WAY = 4
"""Deliveries to one stage at a time: a burst of them, 6 MB each for a picture of 448x448 of 8B, would fill what stages
read from, and one that has no room would be sent all of them again and again.
"""
_LONGEST_TRY_S = 30.0


def visual_rows_for(target: RowTarget, output: TowerOutput) -> dict[str, Tensor]:
    """Return the tensors that one stage needs, under the names that they travel with.

    Raises:
        TensorMismatchError: it asks for a DeepStack level that the model does not have.
    """
    if any(level >= len(output.levels) for level in target.levels):
        raise TensorMismatchError(
            f"levels {list(target.levels)} are asked for; the model has {len(output.levels)}", field="targets.levels"
        )
    tensors = {level_name(level): output.levels[level] for level in target.levels}
    return tensors | ({EMBEDS: output.embeds} if target.embeds else {})


@dataclass(frozen=True, slots=True)
class LocalStage:
    """The stage in this very process: visual rows for its `subject` are enqueued as they are, on the device."""

    subject: str
    intake: VisualRowIntake


class VisualRowSender:
    """Delivers visual rows: to a stage in this process directly, to others over a transport."""

    def __init__(
        self,
        transport: Transport,
        to_host: Callable[[TowerOutput], Awaitable[TowerOutput]],
        local: LocalStage | None = None,
    ) -> None:
        """`to_host` brings visual rows into host memory, from where alone they can be sent."""
        self._transport = transport
        self._to_host = to_host
        self._local = local
        self._windows: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By a stage's subject, while anything is on its way there."""

    async def send(self, request: PrepareRequest, output: TowerOutput, deadline: float) -> None:
        """Deliver visual rows to every target of `request`; `deadline` is in seconds of the monotonic clock.

        Raises:
            PipelineError: what a stage, or the way there, failed with, after one more try where that may help.
            WorkerBusyError: a stage has had no room until the deadline.
        """
        with tracer.measure(DELIVER, session=request.session, attempt=request.attempt):
            away = [target for target in request.targets if not self._is_here(target)]
            on_host = await self._to_host(output) if away else output
            await together(
                self._deliver(request, target, output if self._is_here(target) else on_host, deadline)
                for target in request.targets
            )

    def _is_here(self, target: RowTarget) -> bool:
        return self._local is not None and target.subject == self._local.subject

    async def _deliver(self, request: PrepareRequest, target: RowTarget, output: TowerOutput, deadline: float) -> None:
        tensors = visual_rows_for(target, output)
        async with self._windows.setdefault(target.subject, asyncio.Semaphore(_MAX_UNDER_WAY)):
            await self._deliver_in_time(request, target, tensors, deadline)

    async def _deliver_in_time(
        self, request: PrepareRequest, target: RowTarget, tensors: Mapping[str, Tensor], deadline: float
    ) -> None:
        """Try once more after a failure that may pass; wait for room, as prompts that are computed make some."""
        num_failures = 0
        while True:
            try:
                return await self._try(request, target, tensors, deadline)
            except PipelineError as error:
                num_failures += not isinstance(error, WorkerBusyError)
                if not error.retryable or num_failures > 1 or time.monotonic() + _PAUSE_S >= deadline:
                    raise
                log.info("visual_rows_resent", session=request.session, subject=target.subject, reason=error.message)
            await asyncio.sleep(_PAUSE_S)

    async def _try(
        self, request: PrepareRequest, target: RowTarget, tensors: Mapping[str, Tensor], deadline: float
    ) -> None:
        delivery = RowDelivery(
            pipeline=request.pipeline,
            fingerprint=request.fingerprint,
            epoch=request.epoch,
            session=request.session,
            attempt=request.attempt,
        )
        if self._local is not None and self._is_here(target):
            self._local.intake.accept_local(delivery, tensors)
            return
        await self._send(target.subject, delivery, tensors, deadline)

    async def _send(self, subject: str, delivery: RowDelivery, tensors: Mapping[str, Tensor], deadline: float) -> None:
        timeout_s = min(max(deadline - time.monotonic(), 0.0), _LONGEST_TRY_S)
        received = await self._transport.request(
            subject,
            delivery,
            {name: to_wire(tensor) for name, tensor in tensors.items()},
            reply_type=RowReceipt,
            timeout_s=timeout_s,
        )
        if received.body.failure is not None:
            raise error_from_failure(received.body.failure)
