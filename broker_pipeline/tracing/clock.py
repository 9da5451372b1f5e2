"""A process's two clocks: the monotonic one, which spans are measured with, and the wall clock, which hosts share."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Protocol

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


class Clock(Protocol):
    """The clocks of a machine."""

    name: str
    """Names the monotonic clock: processes of one boot of one machine share it, in containers too."""
    host: str

    def anchor(self) -> Anchor:
        """Read both clocks."""


class SystemClock:
    """The clocks of the machine that this runs on."""

    def __init__(self) -> None:
        """Learn the machine's names."""
        self.host = socket.gethostname()
        try:
            self.name = _BOOT_ID.read_text().strip()
        except OSError:
            self.name = self.host

    def anchor(self) -> Anchor:
        """Read both clocks as close together as a few tries get."""
        tries = []
        for _ in range(_NUM_TRIES):
            before = time.monotonic_ns()
            wall = time.time_ns()
            after = time.monotonic_ns()
            tries.append((after - before, Anchor(wall, (before + after) // 2)))
        return min(tries, key=lambda each: each[0])[1]
