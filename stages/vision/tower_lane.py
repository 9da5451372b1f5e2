"""The tower's own lane on its device: batches are launched on one thread and awaited on another.

    compute thread      launch(a) ─────► launch(b) ──►            queues copies and kernels, and returns
    the GPU                  └─ a ──────────┘└─ b ───────        one stream, below the decoder's priority,
                                       └ output a ┘ └ …           and one for copies, behind nothing but their own batch
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
from stages.qwen3_vl.vision import TowerEncoder, TowerOutput

log = structlog.get_logger()

_PRIORITY = 0
"""The least that CUDA has. A stage in the same process computes at -1: its steps are short, and many wait for them."""


@dataclass(frozen=True, slots=True)
class LaunchedBatch:
    """The output of each picture, complete once `done` is."""

    outputs: list[TowerOutput]
    done: torch.cuda.Event | None
    launched_at_ns: int


class TowerLane:
    """Runs the tower. `launch` belongs to the compute thread, all else to the finishing thread."""

    def __init__(self, tower: TowerEncoder, *, keeps_on_device: bool = False) -> None:
        """Bring outputs to the host, in pinned memory, unless `keeps_on_device`."""
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
                outputs, done = self._encode(batch)
            return LaunchedBatch(outputs, done, started)
        except PipelineError:
            raise
        except Exception as error:
            raise _crash(error, len(batch)) from error

    def finish(self, launched: LaunchedBatch) -> list[TowerOutput]:
        """Wait until a batch is done and return the output of each picture.

        Raises:
            ComputeError: the GPU failed.
        """
        try:
            if launched.done is not None:
                with _on(self._stream):  # else a thread that has no device yet would wake up the first one
                    launched.done.synchronize()
        except RuntimeError as error:
            raise _crash(error, len(launched.outputs)) from error
        finally:
            started = max(launched.launched_at_ns, self._finished_at_ns)
            self._finished_at_ns = time.monotonic_ns()
            tracer.span(TOWER, started, self._finished_at_ns, num_pictures=len(launched.outputs))
        return launched.outputs

    def join(self, pictures: Sequence[TowerOutput]) -> TowerOutput:
        """Return the outputs of several pictures as one, in prompt order; it is complete."""
        if len(pictures) == 1:
            return pictures[0]
        with _on(self._copies):
            joined = TowerOutput.joined(pictures)
            _wait(_event(self._copies))
        return joined

    def to_host(self, output: TowerOutput) -> TowerOutput:
        """Return a complete output in host memory; one on the device is copied."""
        if output.rows.device.type == "cpu":
            return output
        with _on(self._copies):
            copied = TowerOutput(_to_host(output.rows))
            _wait(_event(self._copies))
        return copied

    def is_alive(self) -> bool:
        """Say whether the device still computes."""
        return is_alive(self.tower.device)

    def _encode(self, batch: Sequence[Patches]) -> tuple[list[TowerOutput], torch.cuda.Event | None]:
        config = self.tower.config
        whole = self.tower.encode(self._gather(batch), [patches.grid for patches in batch])
        # In memory of their own: the next batch overwrites the tower's, and one that is kept must not keep the others.
        pictures = whole.split([patches.grid.num_patches // config.merge_factor for patches in batch])
        if self._keeps_on_device or self._copies is None:
            return pictures, _event(self._stream)
        return self._copy_to_host(pictures, self._copies), _event(self._copies)

    def _copy_to_host(self, pictures: Sequence[TowerOutput], copies: torch.cuda.Stream) -> list[TowerOutput]:
        """Queue copies alongside what the tower computes next."""
        assert self._stream is not None, "there is a GPU"
        copies.wait_stream(self._stream)
        with _on(copies):
            on_host = [TowerOutput(_to_host(picture.rows)) for picture in pictures]
        for picture in pictures:
            picture.rows.record_stream(copies)  # its memory may be used again only after the copy
        return on_host

    def _gather(self, batch: Sequence[Patches]) -> Tensor:
        patch_rows = join_patches(batch, self.tower.config)
        if not self._is_cuda:
            return torch.cat(patch_rows)
        shape = sum(len(rows) for rows in patch_rows), patch_rows[0].shape[1]
        pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        # torch would wake a thread on every core for this, which then spin for a while
        np.concatenate([rows.numpy() for rows in patch_rows], out=pinned.numpy())
        return pinned


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def _event(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    """Return an event of what is queued so far; whoever waits for it sleeps."""
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
    """Log a crash whole; it is answered, as a bug that one picture meets must not take down the worker."""
    log.error("tower_crashed", num_pictures=num_pictures, exc_info=error)
    return ComputeError(f"encoding {num_pictures} pictures failed: {error!r}")
