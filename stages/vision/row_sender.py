"""Sends a session's visual rows straight to the stages that need them, and waits for their receipts."""

from __future__ import annotations

import asyncio
import time

import structlog
import torch

from broker_pipeline.errors import PipelineError, TensorMismatchError, error_from_failure
from broker_pipeline.messages import PrepareRequest, RowDelivery, RowReceipt, RowTarget
from broker_pipeline.tracing.activities import DELIVER
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Transport
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.qwen3_vl.vision import EncodedRows
from stages.stage.row_intake import EMBEDS, level_name
from stages.worker.tensors import to_wire
from stages.worker.together import together

log = structlog.get_logger()

_PAUSE_S = 0.2
_LONGEST_TRY_S = 30.0


def join_rows(pictures: list[EncodedRows]) -> EncodedRows:
    """Return the rows of several pictures as one, in prompt order."""
    if len(pictures) == 1:
        return pictures[0]
    embeds = torch.cat([picture.embeds for picture in pictures])
    levels = zip(*(picture.levels for picture in pictures), strict=True)
    return EncodedRows(embeds, tuple(torch.cat(level) for level in levels))


def rows_for(target: RowTarget, rows: EncodedRows) -> dict[str, WireTensor]:
    """Return the tensors that one stage needs.

    Raises:
        TensorMismatchError: it asks for a DeepStack level that the model does not have.
    """
    if any(level >= len(rows.levels) for level in target.levels):
        raise TensorMismatchError(
            f"levels {list(target.levels)} are asked for; the model has {len(rows.levels)}", field="targets.levels"
        )
    tensors = {level_name(level): to_wire(rows.levels[level]) for level in target.levels}
    return tensors | ({EMBEDS: to_wire(rows.embeds)} if target.embeds else {})


class RowSender:
    """Delivers rows over one transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send(self, request: PrepareRequest, rows: EncodedRows, deadline: float) -> None:
        """Deliver rows to every target of `request`; `deadline` is in seconds of the monotonic clock.

        Raises:
            PipelineError: what a stage, or the way there, failed with, after one more try where that may help.
        """
        with tracer.measure(DELIVER, session=request.session, attempt=request.attempt):
            await together(self._deliver(request, target, rows, deadline) for target in request.targets)

    async def _deliver(self, request: PrepareRequest, target: RowTarget, rows: EncodedRows, deadline: float) -> None:
        tensors = rows_for(target, rows)
        try:
            await self._try(request, target, tensors, deadline)
        except PipelineError as error:
            if not error.retryable:
                raise
            log.info("rows_sent_again", session=request.session, subject=target.subject, reason=error.message)
            await asyncio.sleep(_PAUSE_S)
            await self._try(request, target, tensors, deadline)

    async def _try(
        self, request: PrepareRequest, target: RowTarget, tensors: dict[str, WireTensor], deadline: float
    ) -> None:
        delivery = RowDelivery(
            pipeline=request.pipeline,
            fingerprint=request.fingerprint,
            epoch=request.epoch,
            session=request.session,
            attempt=request.attempt,
        )
        timeout_s = min(max(deadline - time.monotonic(), 0.0), _LONGEST_TRY_S)
        received = await self._transport.request(
            target.subject, delivery, tensors, reply_type=RowReceipt, timeout_s=timeout_s
        )
        if received.body.failure is not None:
            raise error_from_failure(received.body.failure)
