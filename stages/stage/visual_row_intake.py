"""Visual rows as they arrive at a stage: checked, kept, acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import structlog
import torch
from torch import Tensor

from broker_pipeline.errors import PipelineError, TensorMismatchError, TransportError
from broker_pipeline.messages.vision import RowDelivery, RowReceipt
from broker_pipeline.wire.transport import Received
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.compute.visual_injection import VisualRowNeeds
from stages.compute.visual_row_buffer import VisualRowBuffer, VisualRows
from stages.stage.envelope_checks import StageFacts, check_origin
from stages.worker.epoch_fence import EpochFence
from stages.worker.tensors import from_wire

log = structlog.get_logger()

EMBEDS = "embeds"


def level_name(level: int) -> str:
    """Return the name under which the visual rows of a DeepStack level travel."""
    return f"deepstack.{level}"


def read_visual_rows(
    tensors: Mapping[str, WireTensor], needs: VisualRowNeeds, hidden_size: int, dtype: torch.dtype
) -> VisualRows:
    """Return a delivery's visual rows.

    Raises:
        TensorMismatchError: what came is not exactly what this stage needs, or has the wrong dtype or shape.
    """
    _check_names(tensors, needs)
    read = {name: from_wire(name, wire, dtype=dtype, shape=(None, hidden_size)) for name, wire in tensors.items()}
    return VisualRows(read.get(EMBEDS), {level: read[level_name(level)] for level in needs.levels})


def take_visual_rows(
    tensors: Mapping[str, Tensor], needs: VisualRowNeeds, hidden_size: int, dtype: torch.dtype
) -> VisualRows:
    """Return visual rows that were made in this process, on whatever device they are.

    Raises:
        TensorMismatchError: as for `read_visual_rows`.
    """
    _check_names(tensors, needs)
    for name, tensor in tensors.items():
        if tensor.dtype != dtype or tensor.dim() != 2 or tensor.shape[1] != hidden_size:
            raise TensorMismatchError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} and must be {dtype} [any, {hidden_size}]",
                field=f"tensors.{name}",
            )
    return VisualRows(tensors.get(EMBEDS), {level: tensors[level_name(level)] for level in needs.levels})


def _check_names(tensors: Mapping[str, object], needs: VisualRowNeeds) -> None:
    wanted = {level_name(level) for level in needs.levels} | ({EMBEDS} if needs.embeds else set())
    if set(tensors) != wanted:
        raise TensorMismatchError(
            f"visual rows {sorted(tensors)} came; this stage needs {sorted(wanted)}", field="tensors"
        )


class VisualRowIntake:
    """Answers deliveries of visual rows to one stage."""

    def __init__(
        self,
        facts: StageFacts,
        needs: VisualRowNeeds,
        buffer: VisualRowBuffer,
        fence: EpochFence,
        *,
        is_pinned: bool = False,
    ) -> None:
        """`is_pinned`: rows from other processes wait in page-locked memory, so that the thread that computes need not
        copy them there.
        """
        self._is_pinned = is_pinned
        self._facts = facts
        self._needs = needs
        self._buffer = buffer
        self._fence = fence

    @property
    def takes_any(self) -> bool:
        """Whether this stage needs visual rows at all: the first does, and those with layers of DeepStack levels."""
        return self._needs.embeds or bool(self._needs.levels)

    async def serve(self, messages: AsyncIterator[Received[RowDelivery]]) -> None:
        """Keep what comes, and say so or why not in a receipt, until cancelled."""
        async for message in messages:
            receipt = await self._take(message)
            try:
                await message.respond(receipt)
            except TransportError as error:
                log.warning("receipt_lost", session=receipt.session, reason=error.message)
            del message  # its memory may be lent

    async def _take(self, message: Received[RowDelivery]) -> RowReceipt:
        delivery = message.body
        try:
            self._admit(delivery)
            rows = read_visual_rows(message.tensors, self._needs, self._facts.hidden_size, self._facts.dtype)
            if message.is_lent or self._is_pinned:  # kept until their prefill, far longer than a sender can do without
                rows = await asyncio.to_thread(rows.copied, is_pinned=self._is_pinned)
            self._keep(delivery, rows)
        except PipelineError as error:
            log.warning("visual_rows_refused", session=delivery.session, attempt=delivery.attempt, code=error.code)
            return RowReceipt(session=delivery.session, attempt=delivery.attempt, failure=error.to_failure())
        return RowReceipt(session=delivery.session, attempt=delivery.attempt)

    def accept_local(self, delivery: RowDelivery, tensors: Mapping[str, Tensor]) -> None:
        """Check and keep visual rows that a vision worker of this process enqueues; they must be complete.

        Raises:
            PipelineError: says why they are refused.
        """
        self._admit(delivery)
        self._keep(delivery, take_visual_rows(tensors, self._needs, self._facts.hidden_size, self._facts.dtype))

    def _admit(self, delivery: RowDelivery) -> None:
        check_origin(delivery.version, delivery.pipeline, delivery.fingerprint, self._facts)
        self._fence.admit(delivery.epoch)

    def _keep(self, delivery: RowDelivery, visual_rows: VisualRows) -> None:
        self._buffer.put(delivery.session, delivery.attempt, delivery.epoch, visual_rows)
