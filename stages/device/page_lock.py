"""Page-locked memory that torch has not allocated: a GPU copies from and to it by itself, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import structlog
import torch

log = structlog.get_logger()

_PORTABLE = 1
"""For every GPU that this process uses."""


def lock_pages(device: torch.device, memory: memoryview) -> Callable[[], None]:
    """Lock the pages of `memory`, and return what unlocks them again, before they are unmapped.

    Where that fails, memory stays as it is: copies then take a way through memory that is locked. CUDA keeps a failure
    for the next call of the same thread, so that this has to run on a thread that launches nothing.
    """
    address = int(np.frombuffer(memory, np.uint8).ctypes.data)
    with torch.cuda.device(device):  # on another one, this would begin a context there, which takes memory
        code = _cudart().cudaHostRegister(address, len(memory), _PORTABLE)
    if code != _cudart().cudaError.success:
        log.warning("pages_not_locked", num_bytes=len(memory), reason=_cudart().cudaGetErrorString(code))
        return lambda: None
    return lambda: _unlock(device, address)


def _unlock(device: torch.device, address: int) -> None:
    with torch.cuda.device(device):
        code = _cudart().cudaHostUnregister(address)
    if code != _cudart().cudaError.success:
        log.warning("pages_not_unlocked", reason=_cudart().cudaGetErrorString(code))


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
