"""Copies between host and device that are only queued: through pinned memory, so that nobody waits for them."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from broker_pipeline.tracing.activities import COPY_IN, COPY_OUT
from stages.device.times import timed


def pinned(host: Tensor) -> Tensor:
    """Return a copy in page-locked memory. torch keeps it from being used again until copies out of it are done."""
    return torch.empty(host.shape, dtype=host.dtype, pin_memory=True).copy_(host)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, complete in the order of the current stream."""
    if device.type != "cuda":
        return host.to(device)
    staged = pinned(host)
    with timed(COPY_IN, device):
        return staged.to(device, non_blocking=True)


class Staging:
    """A few page-locked buffers of int32 that are written round-robin and sent to one buffer of the device."""

    def __init__(self, target: Tensor, num_buffers: int = 4) -> None:
        self._target = target
        self._buffers = [torch.empty(target.shape, dtype=target.dtype, pin_memory=True) for _ in range(num_buffers)]
        self._arrays = [buffer.numpy() for buffer in self._buffers]
        self._sent = [torch.cuda.Event() for _ in range(num_buffers)]
        self._turn = itertools.cycle(range(num_buffers))
        self._current = 0

    def next(self) -> npt.NDArray[np.int32]:
        """Return a buffer to write to; wait where it is still being sent, which is rare unless many are queued."""
        self._current = next(self._turn)
        self._sent[self._current].synchronize()
        return self._arrays[self._current]

    def send(self, num_ints: int) -> None:
        """Queue the copy of the buffer's first numbers."""
        self._target[:num_ints].copy_(self._buffers[self._current][:num_ints], non_blocking=True)
        self._sent[self._current].record()


class HostCopy:
    """A tensor's way to the host on a stream of its own, alongside what is computed next."""

    def __init__(self, tensor: Tensor | None, stream: torch.cuda.Stream | None) -> None:
        self.tensor = tensor
        self._done: torch.cuda.Event | None = None
        if tensor is None or stream is None:
            return
        computed = torch.cuda.Event()
        computed.record()
        self.tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._done = torch.cuda.Event()
        with torch.cuda.stream(stream):
            stream.wait_event(computed)
            with timed(COPY_OUT, tensor.device):
                self.tensor.copy_(tensor, non_blocking=True)
            self._done.record()
        tensor.record_stream(stream)  # its memory may be used again only after the copy

    def wait(self) -> Tensor | None:
        """Return the tensor, complete: on the host where it came from a GPU."""
        if self._done is not None:
            self._done.synchronize()
        return self.tensor
