"""Gives the vision tower whatever pictures are waiting, together.

    encode(a) ──┐                    ┌─ output a
    encode(b) ──┼─► waiting ─► tower ┼─ output b        while one batch is encoded, the next gathers;
    encode(c) ──┘   (≤ max_patches)  └─ …                 once that is full it is launched behind the first

A batch that is not full waits until the GPU is free: it grows meanwhile, and a larger one costs less per picture.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from broker_pipeline.errors import PipelineError
from stages.prompt.preprocess import Patches
from stages.qwen3_vl.vision import TowerOutput
from stages.vision.tower_lane import LaunchedBatch, TowerLane
from stages.worker.compute_thread import ComputeThread

log = structlog.get_logger()

_MAX_LAUNCHED = 2


@dataclass(frozen=True, slots=True)
class _Waiting:
    patches: Patches
    output: asyncio.Future[TowerOutput]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What the tower encodes in one go: patches (or one picture of more), and pictures where they are bounded."""

    max_patches: int
    max_pictures: int | None = None


class TowerBatcher:
    """Encodes pictures of many callers, in batches on the tower's lane."""

    def __init__(
        self, lane: TowerLane, limits: BatchLimits, launching: ComputeThread, finishing: ComputeThread
    ) -> None:
        """Batches are launched on one thread; the other waits for the device."""
        self._lane = lane
        self._limits = limits
        self._launching = launching
        self._finishing = finishing
        self._waiting: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._num_launched = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self.num_batches = 0
        self.num_visual_rows = 0

    @property
    def busy_s(self) -> float:
        """Seconds during which the tower had something to do."""
        return self._busy_s + (time.monotonic() - self._busy_since if self._num_launched else 0.0)

    async def encode(self, patches: Patches) -> TowerOutput:
        """Return what the tower makes of one picture or video, where the lane leaves it.

        Raises:
            ComputeError: the tower failed on this very input.
        """
        waiting = _Waiting(patches, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._changed.set()
        return await waiting.output

    async def join(self, pictures: Sequence[TowerOutput]) -> TowerOutput:
        """Return the outputs of several pictures as one, in prompt order."""
        return pictures[0] if len(pictures) == 1 else await self._finishing.run(self._lane.join, pictures)

    async def to_host(self, output: TowerOutput) -> TowerOutput:
        """Return an output in host memory."""
        return output if output.rows.device.type == "cpu" else await self._finishing.run(self._lane.to_host, output)

    async def serve(self) -> None:
        """Encode what arrives until cancelled.

        Raises (in a group):
            ComputeError: the device is lost; only a new process can use it again.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._changed.wait()
                self._changed.clear()
                while self._may_launch() and (batch := self._take()):
                    self._count_launched(+1)
                    launched = await self._launch(batch)
                    if launched is not None:
                        tasks.create_task(self._finish(batch, launched), name="tower batch")

    def _may_launch(self) -> bool:
        if self._num_launched == 0:
            return bool(self._waiting)
        return self._num_launched < _MAX_LAUNCHED and self._has_full_batch()

    def _has_full_batch(self) -> bool:
        limits, num_patches = self._limits, 0
        for num_pictures, item in enumerate(self._waiting, start=1):
            num_patches += item.patches.grid.num_patches
            if num_patches >= limits.max_patches or num_pictures == limits.max_pictures:
                return True
        return False

    def _take(self) -> list[_Waiting]:
        """Take what fits into one batch, in order of arrival; callers that gave up meanwhile are left out."""
        batch: list[_Waiting] = []
        num_patches = 0
        while self._waiting and len(batch) != self._limits.max_pictures:
            size = self._waiting[0].patches.grid.num_patches
            if batch and num_patches + size > self._limits.max_patches:
                break
            item = self._waiting.popleft()
            if not item.output.done():
                batch.append(item)
                num_patches += size
        return batch

    def _count_launched(self, change: int) -> None:
        busy_s = self.busy_s
        self._num_launched += change
        self._busy_s, self._busy_since = busy_s, time.monotonic()

    async def _launch(self, batch: list[_Waiting]) -> LaunchedBatch | None:
        try:
            return await self._launching.run(self._lane.launch, [item.patches for item in batch])
        except PipelineError as error:
            await self._answer_failure(batch, error)
            self._count_launched(-1)
            return None

    async def _finish(self, batch: list[_Waiting], launched: LaunchedBatch) -> None:
        try:
            if launched.done is None:
                encoded = self._lane.finish(launched)
            else:
                encoded = await self._finishing.run(self._lane.finish, launched)
        except PipelineError as error:
            await self._answer_failure(batch, error)
        else:
            self._answer(batch, encoded)
        finally:
            self._count_launched(-1)
            self._changed.set()

    def _answer(self, batch: list[_Waiting], encoded: list[TowerOutput]) -> None:
        self.num_batches += 1
        self.num_visual_rows += sum(output.rows.shape[1] for output in encoded)
        for item, output in zip(batch, encoded, strict=True):
            if not item.output.done():
                item.output.set_result(output)

    async def _answer_failure(self, batch: list[_Waiting], error: PipelineError) -> None:
        """Try each picture of a failed batch by itself: one of them may be the cause, or their number."""
        if not await self._launching.run(self._lane.is_alive):
            raise error
        if len(batch) == 1:
            if not batch[0].output.done():
                batch[0].output.set_exception(error)
            return
        log.warning("tower_batch_split", num_pictures=len(batch), reason=error.message)
        for item in batch:
            await self._encode_alone(item)

    async def _encode_alone(self, item: _Waiting) -> None:
        try:
            launched = await self._launching.run(self._lane.launch, [item.patches])
            encoded = await self._finishing.run(self._lane.finish, launched)
        except PipelineError as error:
            await self._answer_failure([item], error)
        else:
            self._answer([item], encoded)
