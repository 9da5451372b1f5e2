"""A process's two clocks: the monotonic one, which spans are measured with, and the wall clock, which hosts share."""

from __future__ import annotations

import socket
import time
from functools import lru_cache
from pathlib import Path

import msgspec

_NUM_TRIES = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Anchor(msgspec.Struct, frozen=True):
    """Both clocks at one instant, in nanoseconds."""

    wall_ns: int
    monotonic_ns: int

    @property
    def offset_ns(self) -> int:
        """What to add to the monotonic clock to get the wall clock."""
        return self.wall_ns - self.monotonic_ns


def take_anchor() -> Anchor:
    """Read both clocks as close together as a few tries get."""
    tries = []
    for _ in range(_NUM_TRIES):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        tries.append((after - before, Anchor(wall, (before + after) // 2)))
    return min(tries, key=lambda each: each[0])[1]


@lru_cache(maxsize=1)
def clock_name() -> str:
    """Name the monotonic clock: processes of one boot of one machine share it, in containers too."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
