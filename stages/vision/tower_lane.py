"""The tower's own lane on its device: batches are launched on one thread and awaited on another.

    compute thread      launch(a) ─────► launch(b) ──►            queues copies and kernels, and returns
    the GPU                  └─ a ──────────┘└─ b ───────        one stream, below the decoder's priority,
                                       └ rows of a ┘ └ …          and one for copies, behind nothing but their own batch
    finishing thread                 finish(a) ──► finish(b)      sleeps until the GPU is done with a batch

On the CPU, `launch` computes and there is nothing left to wait for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from torch import Tensor

from broker_pipeline.errors import ComputeError, PipelineError
from broker_pipeline.tracing.activities import TOWER
from broker_pipeline.tracing.tracer import tracer
from stages.device.hardware import is_alive
from stages.prompt.preprocess import Patches, join_patches
from stages.qwen3_vl.vision import EncodedRows, VisionTower

log = structlog.get_logger()

_PRIORITY = 0
"""The least that CUDA has. A stage in the same process computes at -1: its steps are short, and many wait for them."""


@dataclass(frozen=True, slots=True)
class LaunchedBatch:
    """The rows of each picture, complete once `done` is."""

    rows: list[EncodedRows]
    done: torch.cuda.Event | None
    launched_at_ns: int


class TowerLane:
    """Runs the tower. `launch` belongs to the compute thread, all else to the finishing thread."""

    def __init__(self, tower: VisionTower, *, keeps_on_device: bool = False) -> None:
        """Rows come back on the host, in pinned memory, unless they are kept on the tower's device."""
        self.tower = tower
        self._is_cuda = tower.device.type == "cuda"
        self._keeps_on_device = keeps_on_device
        self._stream: torch.cuda.Stream | None = None
        self._copies: torch.cuda.Stream | None = None
        self._finished_at_ns = 0
        if self._is_cuda:
            self._stream = torch.cuda.Stream(tower.device, priority=_PRIORITY)
            self._stream.wait_stream(torch.cuda.default_stream(tower.device))  # where the weights were loaded
            self._copies = torch.cuda.Stream(tower.device, priority=_PRIORITY)

    def launch(self, batch: Sequence[Patches]) -> LaunchedBatch:
        """Queue a batch; returns before the GPU is done with it.

        Raises:
            ComputeError: it could not be queued, by lack of memory say.
        """
        started = time.monotonic_ns()
        try:
            with _on(self._stream):
                rows, done = self._encode(batch)
            return LaunchedBatch(rows, done, started)
        except PipelineError:
            raise
        except Exception as error:
            raise _crash(error, len(batch)) from error

    def finish(self, launched: LaunchedBatch) -> list[EncodedRows]:
        """Wait until a batch is done and return the rows of each picture.

        Raises:
            ComputeError: the GPU failed.
        """
        try:
            if launched.done is not None:
                with _on(self._stream):  # else a thread that has no device yet would wake up the first one
                    launched.done.synchronize()
        except RuntimeError as error:
            raise _crash(error, len(launched.rows)) from error
        finally:
            started = max(launched.launched_at_ns, self._finished_at_ns)
            self._finished_at_ns = time.monotonic_ns()
            tracer.span(TOWER, started, self._finished_at_ns, num_pictures=len(launched.rows))
        return launched.rows

    def join(self, pictures: Sequence[EncodedRows]) -> EncodedRows:
        """Return the rows of several pictures as one, in prompt order; they are complete."""
        if len(pictures) == 1:
            return pictures[0]
        with _on(self._copies):
            embeds = torch.cat([picture.embeds for picture in pictures])
            levels = zip(*(picture.levels for picture in pictures), strict=True)
            joined = EncodedRows(embeds, tuple(torch.cat(level) for level in levels))
            _wait(_event(self._copies))
        return joined

    def to_host(self, rows: EncodedRows) -> EncodedRows:
        """Return rows in host memory; complete rows of the device are copied."""
        if rows.embeds.device.type == "cpu":
            return rows
        with _on(self._copies):
            copied = EncodedRows(_to_host(rows.embeds), tuple(_to_host(level) for level in rows.levels))
            _wait(_event(self._copies))
        return copied

    def is_alive(self) -> bool:
        """Say whether the device still computes."""
        return is_alive(self.tower.device)

    def _encode(self, batch: Sequence[Patches]) -> tuple[list[EncodedRows], torch.cuda.Event | None]:
        config = self.tower.config
        whole = self.tower.encode(self._gather(batch), [patches.grid for patches in batch])
        counts = [patches.grid.num_patches // config.merge_factor for patches in batch]
        tensors = (whole.embeds, *whole.levels)
        if self._keeps_on_device or self._copies is None:
            parts, last = [_split(tensor, counts) for tensor in tensors], self._stream
        else:
            parts, last = self._copy_to_host(tensors, counts), self._copies
        rows = [EncodedRows(embeds, tuple(levels)) for embeds, *levels in zip(*parts, strict=True)]
        return rows, _event(last)

    def _copy_to_host(self, tensors: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]]:
        """Queue copies alongside what the tower computes next."""
        assert self._stream is not None and self._copies is not None, "there is a GPU"  # noqa: PT018
        self._copies.wait_stream(self._stream)
        with _on(self._copies):
            parts = [[_to_host(part) for part in torch.split(tensor, list(counts))] for tensor in tensors]
        for tensor in tensors:
            tensor.record_stream(self._copies)  # its memory may be used again only after the copies
        return parts

    def _gather(self, batch: Sequence[Patches]) -> Tensor:
        rows = join_patches(batch, self.tower.config)
        if not self._is_cuda:
            return torch.cat(rows)
        pinned = torch.empty(sum(each.shape[0] for each in rows), rows[0].shape[1], dtype=torch.uint8, pin_memory=True)
        # torch would wake a thread on every core for this, which then spin for a while
        np.concatenate([each.numpy() for each in rows], out=pinned.numpy())
        return pinned


def _split(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Rows per picture, each in memory of its own: one that is kept must not keep the others alive."""
    parts = torch.split(tensor, list(counts))
    return [part.clone() if len(counts) > 1 else part for part in parts]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _event(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    """An event of what is queued so far; whoever waits for it sleeps."""
    if stream is None:
        return None
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


def _wait(event: torch.cuda.Event | None) -> None:
    if event is not None:
        event.synchronize()


def _to_host(tensor: Tensor) -> Tensor:
    """Queue a copy into pinned memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _crash(error: Exception, num_pictures: int) -> ComputeError:
    """A bug met by one picture must not take down the worker; it is answered, and logged whole."""
    log.error("tower_crashed", num_pictures=num_pictures, exc_info=error)
    return ComputeError(f"encoding {num_pictures} pictures failed: {error!r}")
