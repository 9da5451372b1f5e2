"""A small /dev/shm of this process's and its children's own, which can be filled.

It is a file system of its own in a mount namespace of its own, so nobody else on the machine misses anything, and the
namespace goes with the last process in it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from broker_pipeline.errors import ConfigurationError

_SHM = Path("/dev/shm")  # noqa: S108 - it is made here
_FILLING = _SHM / "soak-filling"
_SIZE = "192m"
_LEFT = 2**20
"""Bytes that stay free: libfaketime, which clock faults preload into every service, takes two pages at its start, and
where it finds just one, SIGBUS kills whoever starts meanwhile."""
_CLONE_NEWNS = 0x00020000


def require_shared_memory() -> None:
    """Raise `ConfigurationError` where this process cannot have a /dev/shm of its own."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ConfigurationError(
            "shm faults need root on Linux, for a /dev/shm of their own; run as root, or leave them out", field="faults"
        )


def make_own() -> None:
    """Have a /dev/shm that is nobody else's; call it from the main thread, before there are others."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise ConfigurationError(f"shm faults cannot be made: {os.strerror(ctypes.get_errno())}", field="faults")
    for words in ("--make-rprivate /", f"-t tmpfs -o size={_SIZE} tmpfs {_SHM}"):
        subprocess.run(["mount", *words.split()], check=True)  # noqa: S603, S607 - the system's, and words of ours


def fill() -> None:
    """Leave no room for a ring."""
    room = os.statvfs(_SHM)
    num_bytes = room.f_bavail * room.f_frsize - _LEFT
    with _FILLING.open("wb") as file:
        if num_bytes > 0:
            os.posix_fallocate(file.fileno(), 0, num_bytes)


def empty() -> None:
    """Give the room back."""
    _FILLING.unlink(missing_ok=True)
