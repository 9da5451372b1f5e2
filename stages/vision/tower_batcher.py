"""Gives the vision tower whatever pictures are waiting, together.

encode(a) ──┐                    ┌─ rows of a
encode(b) ──┼─► waiting ─► tower ┼─ rows of b        while one batch is encoded, the next gathers
encode(c) ──┘   (≤ max_patches)  └─ …
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from broker_pipeline.errors import ComputeError, PipelineError
from broker_pipeline.tracing.activities import TOWER
from broker_pipeline.tracing.tracer import tracer
from stages.compute.device import is_alive
from stages.prompt.preprocess import Patches, join_patches
from stages.qwen3_vl.vision import EncodedRows, VisionTower
from stages.worker.compute_thread import ComputeThread

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Waiting:
    patches: Patches
    rows: asyncio.Future[EncodedRows]


class TowerBatcher:
    """Encodes pictures of many callers on the compute thread, at most `max_patches` in one go (or one picture)."""

    def __init__(self, tower: VisionTower, thread: ComputeThread, max_patches: int) -> None:
        self._tower = tower
        self._thread = thread
        self._max_patches = max_patches
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self.num_batches = 0
        self.num_rows = 0

    async def encode(self, patches: Patches) -> EncodedRows:
        """Return the rows of one picture or video, on the CPU.

        Raises:
            ComputeError: the tower failed on this very input.
        """
        waiting = _Waiting(patches, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.rows

    async def serve(self) -> None:
        """Encode what arrives until cancelled.

        Raises:
            ComputeError: the device is lost; only a new process can use it again.
        """
        while True:
            await self._arrived.wait()
            batch = self._take()
            if batch:
                await self._run(batch)

    def _take(self) -> list[_Waiting]:
        """Take what fits into one batch, in order of arrival; callers that gave up meanwhile are left out."""
        batch: list[_Waiting] = []
        num_patches = 0
        while self._waiting:
            size = self._waiting[0].patches.grid.num_patches
            if batch and num_patches + size > self._max_patches:
                return batch
            item = self._waiting.popleft()
            if not item.rows.done():
                batch.append(item)
                num_patches += size
        self._arrived.clear()
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        try:
            encode = tracer.measured(TOWER, self._encode, num_pictures=len(batch))
            encoded = await self._thread.run(encode, [item.patches for item in batch])
        except PipelineError as error:
            if not await self._thread.run(is_alive, self._tower.device):
                raise
            await self._run_apart(batch, error)
            return
        for item, rows in zip(batch, encoded, strict=True):
            if not item.rows.done():
                item.rows.set_result(rows)

    async def _run_apart(self, batch: list[_Waiting], error: PipelineError) -> None:
        """Where a batch fails, one picture may be the cause, or their number: each is tried by itself."""
        if len(batch) == 1:
            if not batch[0].rows.done():
                batch[0].rows.set_exception(error)
            return
        log.warning("tower_batch_split", num_pictures=len(batch), reason=error.message)
        for item in batch:
            await self._run([item])

    def _encode(self, batch: list[Patches]) -> list[EncodedRows]:
        grids = [patches.grid for patches in batch]
        try:
            whole = self._tower.encode(torch.cat(join_patches(batch, self._tower.config)), grids)
            merged = self._tower.config.spatial_merge_size**2
            counts = [grid.num_patches // merged for grid in grids]
            parts = [_split(tensor, counts) for tensor in (whole.embeds, *whole.levels)]
        except PipelineError:
            raise
        except Exception as error:
            # A bug met by one picture must not take down the worker; it is answered, and logged whole.
            log.exception("tower_crashed", num_pictures=len(batch))
            raise ComputeError(f"encoding {len(batch)} pictures failed: {error!r}") from error
        self.num_batches += 1
        self.num_rows += sum(counts)
        return [EncodedRows(embeds, tuple(levels)) for embeds, *levels in zip(*parts, strict=True)]


def _split(tensor: Tensor, counts: list[int]) -> list[Tensor]:
    """Rows per picture on the CPU, each in memory of its own: one that is cached must not keep the others alive."""
    parts = torch.split(tensor.cpu(), counts)
    return [part.clone() if len(counts) > 1 else part for part in parts]
