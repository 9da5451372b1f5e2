"""What a figure was measured on. Read without torch: a benchmark's own process need not have it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

_GPUS = Path("/proc/driver/nvidia/gpus")


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Processor, GPUs and versions. Nothing here names the machine."""

    cpu: str
    num_cores: int
    """Cores that this process may use."""
    gpus: tuple[str, ...]
    python: str
    torch: str | None
    platform: str
    commit: str | None = None
    """Of the checkout that runs, with `-dirty` where files were edited; None where this is no checkout."""
    load_average: float
    """Processes that wanted a core during the minute before: figures taken alongside other work are worse."""
    date: str
    """When the benchmark began, in UTC."""

    @classmethod
    def read(cls) -> MachineFacts:
        """Look at this machine."""
        return cls(
            cpu=_cpu_name(),
            num_cores=len(os.sched_getaffinity(0)),
            gpus=_gpu_names(),
            python=platform.python_version(),
            torch=_version("torch"),
            platform=f"{platform.system()} {platform.machine()}",
            commit=_commit(Path(__file__).parents[2]),
            load_average=round(os.getloadavg()[0], 2),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def __str__(self) -> str:
        gpus = f"{', '.join(self.gpus)}; " if self.gpus else ""
        torch = f"torch {self.torch}" if self.torch else "without torch"
        return (
            f"{gpus}{self.num_cores} cores of {self.cpu}, Python {self.python}, {torch}, "
            f"load {self.load_average:g} before, {self.date}, commit {self.commit or 'unknown'}"
        )


def _cpu_name() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _gpu_names() -> tuple[str, ...]:
    names = []
    for gpu in sorted(_GPUS.glob("*/information")):
        names += [line.partition(":")[2].strip() for line in _lines(gpu) if line.startswith("Model:")]
    return tuple(names)


def _commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():
        return None
    command = ("git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (no word of it is a user's)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
