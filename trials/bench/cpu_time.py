"""Seconds of a core and memory that processes use, as Linux counts them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_USER, _SYSTEM = 11, 12  # fields behind the program's name in /proc/PID/stat


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and all its threads; 0 where that cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the memory that a process has in use, what it shares with others included; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class CpuClock:
    """Says how much each of some processes has used since the clock was made."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """Start counting; `pids` has a process id by name."""
        self._pids = dict(pids)
        self._started = self._read()

    def passed(self) -> dict[str, float]:
        """Return seconds by name; what has ended meanwhile is not counted."""
        return {name: max(0.0, round(seconds - self._started[name], 3)) for name, seconds in self._read().items()}

    def _read(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._pids.items()}
