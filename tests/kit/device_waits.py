"""Code in which nothing may wait for a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_device_waits() -> Iterator[None]:
    """Raise RuntimeError inside where the host waits for the GPU; afterwards torch's mode is what it was.

    The mode belongs to the process: left on, it fails whatever test comes next.
    """
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set_mode("error")
        yield
    finally:
        _set_mode(before)


def _set_mode(mode: int | str) -> None:
    """Set the mode; torch warns, once per process and after it has done so, that the mode is a prototype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode(mode)
