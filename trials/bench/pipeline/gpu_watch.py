"""What the driver says of this machine's GPUs while a round runs, from a `nvidia-smi` that repeats itself."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import fmean

from trials.bench.breakdown import GpuLoad

_QUERY = "utilization.gpu,power.draw,memory.used"
_EVERY_MS = 500
_STOP_S = 2.0


class GpuWatch:
    """Means over time of the busiest GPU. Made by `open`."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._samples: list[tuple[float, float, float]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[GpuWatch]:
        """Watch while the context is open; without a driver there is nothing to see."""
        watch = cls()
        program = shutil.which("nvidia-smi")
        if program is None:
            yield watch
            return
        process = await asyncio.create_subprocess_exec(
            program,
            f"--query-gpu={_QUERY}",
            "--format=csv,noheader,nounits",
            f"--loop-ms={_EVERY_MS}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        reading = asyncio.create_task(watch._read(process))
        try:
            yield watch
        finally:
            await _end(process)
            reading.cancel()
            await asyncio.wait({reading})

    def begin(self) -> None:
        """Forget what was before."""
        self._samples.clear()

    def end(self) -> GpuLoad | None:
        """Return the means since `begin`, None where nothing was seen."""
        if not self._samples:
            return None
        utilisation, watts, memory_mb = (fmean(column) for column in zip(*self._samples, strict=True))
        return GpuLoad(utilisation=round(utilisation / 100, 3), watts=round(watts, 1), memory_mb=round(memory_mb))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if (sample := parse_sample(line.decode(errors="replace"))) is not None:
                self._samples.append(sample)


def parse_sample(line: str) -> tuple[float, float, float] | None:
    """Return utilisation (%), watts and MiB of one line; None where the driver does not know one of them."""
    words = [word.strip() for word in line.split(",")]
    try:
        utilisation, watts, memory_mb = (float(word) for word in words)
    except ValueError:
        return None
    return utilisation, watts, memory_mb


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
