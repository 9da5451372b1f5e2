"""Visual rows as they arrive at a stage: checked, kept, acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import msgspec
import numpy as np
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


def _copied(tensors: Mapping[str, WireTensor]) -> dict[str, WireTensor]:
    return {name: msgspec.structs.replace(tensor, data=_copy(tensor.data)) for name, tensor in tensors.items()}


def _copy(data: memoryview) -> memoryview:
    return np.array(np.frombuffer(data, np.uint8)).data if data else data


def _check_names(tensors: Mapping[str, object], needs: VisualRowNeeds) -> None:
    wanted = {level_name(level) for level in needs.levels} | ({EMBEDS} if needs.embeds else set())
    if set(tensors) != wanted:
        raise TensorMismatchError(
            f"visual rows {sorted(tensors)} came; this stage needs {sorted(wanted)}", field="tensors"
        )


class VisualRowIntake:
    """Answers deliveries of visual rows to one stage."""

    def __init__(self, facts: StageFacts, needs: VisualRowNeeds, buffer: VisualRowBuffer, fence: EpochFence) -> None:
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
        delivery, tensors = message.body, message.tensors
        try:
            if message.is_lent:  # rows are kept until their prefill, far longer than the sender can do without
                tensors = await asyncio.to_thread(_copied, tensors)
            self.accept(delivery, tensors)
        except PipelineError as error:
            log.warning("visual_rows_refused", session=delivery.session, attempt=delivery.attempt, code=error.code)
            return RowReceipt(session=delivery.session, attempt=delivery.attempt, failure=error.to_failure())
        return RowReceipt(session=delivery.session, attempt=delivery.attempt)

    def accept(self, delivery: RowDelivery, tensors: Mapping[str, WireTensor]) -> None:
        """Check one delivery and keep its visual rows; raises a PipelineError that says why it is refused."""
        self._admit(delivery)
        self._keep(delivery, read_visual_rows(tensors, self._needs, self._facts.hidden_size, self._facts.dtype))

    def accept_local(self, delivery: RowDelivery, tensors: Mapping[str, Tensor]) -> None:
        """Like `accept`, for visual rows that a vision worker of this process enqueues; they must be complete."""
        self._admit(delivery)
        self._keep(delivery, take_visual_rows(tensors, self._needs, self._facts.hidden_size, self._facts.dtype))

    def _admit(self, delivery: RowDelivery) -> None:
        check_origin(delivery.version, delivery.pipeline, delivery.fingerprint, self._facts)
        self._fence.admit(delivery.epoch)

    def _keep(self, delivery: RowDelivery, visual_rows: VisualRows) -> None:
        self._buffer.put(delivery.session, delivery.attempt, delivery.epoch, visual_rows)
