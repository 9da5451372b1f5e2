"""Numbers between host and device without waiting: one copy there, one copy back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers: TypeAlias = NDArray[np.float64]


def send(arrays: Sequence[Numbers], device: torch.device) -> list[Tensor]:
    """Return the arrays as fp64 tensors of the same shapes on `device`, copied in one piece from pinned memory.

    Everything travels as fp64, which holds token ids and places exactly. Torch keeps the pinned memory until the
    copy is done.
    """
    if not arrays:
        return []
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = torch.split(flat.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def fetch(tensor: Tensor) -> Tensor:
    """Return a tensor on the host that holds `tensor` as soon as an event recorded after this call has passed."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    return host
