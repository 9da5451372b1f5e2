"""What the driver says of this machine's GPUs while a round runs, from a `nvidia-smi` that repeats itself."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import fmean

from broker_pipeline.tools.local.processes import ChildProcess
from trials.bench.breakdown import GpuLoad

_QUERY = "utilization.gpu,power.draw,memory.used"
_EVERY_MS = 500


class GpuWatch:
    """Means over time of all GPUs. Made by `open`."""

    def __init__(self, log: Path) -> None:
        """Read the lines that `nvidia-smi` writes into `log`, which without a driver is not there."""
        self._log = log
        self._num_before = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, log: Path) -> AsyncIterator[GpuWatch]:
        """Watch while the context is open; without a driver there is nothing to see."""
        program = shutil.which("nvidia-smi")
        if program is None:
            yield cls(log)
            return
        argv = [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", f"--loop-ms={_EVERY_MS}"]
        child = await ChildProcess.spawn("nvidia-smi", argv, log_path=log)
        try:
            yield cls(log)
        finally:
            await child.stop(2.0)

    def begin(self) -> None:
        """Forget what was before."""
        self._num_before = len(self._lines())

    def end(self) -> GpuLoad | None:
        """Return the means since `begin`, None where nothing was seen."""
        samples = [sample for line in self._lines()[self._num_before :] if (sample := parse_sample(line)) is not None]
        if not samples:
            return None
        utilisation, watts, memory_mb = (fmean(column) for column in zip(*samples, strict=True))
        return GpuLoad(utilisation=round(utilisation / 100, 3), watts=round(watts, 1), memory_mb=round(memory_mb))

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


def parse_sample(line: str) -> tuple[float, float, float] | None:
    """Return utilisation (%), watts and MiB of one line; None where the driver does not know one of them."""
    words = [word.strip() for word in line.split(",")]
    try:
        utilisation, watts, memory_mb = (float(word) for word in words)
    except ValueError:
        return None
    return utilisation, watts, memory_mb
