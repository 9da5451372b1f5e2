"""Copies between host and device that are only queued: through pinned memory, so that nobody waits for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from broker_pipeline.tracing.activities import COPY_IN, COPY_OUT
from stages.device.times import timed


def pinned(host: Tensor) -> Tensor:
    """Return the tensor in page-locked memory: as it is where that is so, or a copy.

    torch keeps the copy's memory from being used again until copies out of it are done. Of what is page-locked already,
    such as a ring, torch may not know: whoever has it keeps it as long.
    """
    return host if host.is_pinned() else torch.empty(host.shape, dtype=host.dtype, pin_memory=True).copy_(host)


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
        self._sent = [torch.cuda.Event(blocking=True) for _ in range(num_buffers)]
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


Room = Callable[[int], memoryview | None]
"""Says where so many bytes may be written that are to be sent, or that there is no such place."""


class HostCopy:
    """A tensor's way to the host on a stream of its own, alongside what is computed next.

    Where there is `room` for what is to be sent, it goes there at once, so that nobody copies it again.
    """

    def __init__(self, tensor: Tensor | None, stream: torch.cuda.Stream | None, room: Room | None = None) -> None:
        self.tensor = tensor
        self._done: torch.cuda.Event | None = None
        if tensor is None:
            return
        placed = _placed(tensor, room) if room is not None else None
        if stream is None:
            self.tensor = tensor if placed is None else placed.copy_(tensor)
            return
        computed = torch.cuda.Event()
        computed.record()
        if placed is None or not placed.is_pinned():  # a copy to other memory would make this thread wait for it
            placed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self.tensor = placed
        self._done = torch.cuda.Event(blocking=True)
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


def _placed(tensor: Tensor, room: Room) -> Tensor | None:
    """Return an empty tensor like `tensor` where there is room for it."""
    view = room(tensor.nbytes) if tensor.nbytes else None
    return None if view is None else torch.frombuffer(view[: tensor.nbytes], dtype=tensor.dtype).view(tensor.shape)
