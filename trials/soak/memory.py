"""Resident memory of processes over time, and whether it is flat. Reads /proc; no library needed."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import msgspec

from trials.bench.cpu_time import resident_bytes


@dataclass(slots=True)
class MemoryLog:
    """Samples of every process, by name; a process that was started again goes on under its name."""

    samples: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def take(self, at_s: float, pids: Mapping[str, int | None]) -> None:
        """Sample every process that lives."""
        for name, pid in pids.items():
            size = resident_bytes(pid) if pid is not None else 0
            if size:
                self.samples.setdefault(name, []).append((at_s, size))

    def write_csv(self, path: Path) -> None:
        """Write one row per sample: seconds, process, bytes."""
        rows = [(at_s, name, size) for name, samples in self.samples.items() for at_s, size in samples]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("seconds", "process", "rss_bytes"))
            writer.writerows((f"{at_s:.2f}", name, size) for at_s, name, size in sorted(rows))


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """How a process's memory went from the middle third of a run to its last third: means in bytes."""

    process: str
    middle_bytes: int
    last_bytes: int
    allowed_bytes: int

    @property
    def growth_bytes(self) -> int:
        """Bytes more in the last third than in the middle one."""
        return self.last_bytes - self.middle_bytes

    @property
    def is_flat(self) -> bool:
        """Whether it grew by no more than is allowed."""
        return self.growth_bytes <= self.allowed_bytes


def growth_of(process: str, samples: Sequence[tuple[float, int]], *, allowed_bytes: int) -> Growth:
    """Compare the last third of the time with the middle third; the first third is for warming up."""
    start_s, stop_s = samples[0][0], samples[-1][0]
    third_s = (stop_s - start_s) / 3
    middle = [size for at_s, size in samples if start_s + third_s <= at_s < start_s + 2 * third_s]
    last = [size for at_s, size in samples if at_s >= start_s + 2 * third_s]
    return Growth(
        process=process,
        middle_bytes=round(fmean(middle or last)),
        last_bytes=round(fmean(last)),
        allowed_bytes=allowed_bytes,
    )
