"""How much memory this process's control groups leave it: the limit of a container, or of systemd's `MemoryMax`.

Who takes more is killed by the kernel and has no time to say why, so what is going to be taken is compared before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from broker_pipeline.errors import ConfigurationError

RUNTIME_BYTES = 192 * 2**20
"""Of a worker without weights, on top of what a command has when it starts: torch takes 150 MiB, threads the rest."""
_MIB = 2**20
_SECOND = ("memory.max", "anon", "shmem")
_FIRST = ("memory.limit_in_bytes", "total_rss", "total_shmem")


def left_bytes(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> float:
    """Return what the limits of all groups around this process leave, infinity without any; cached files are free."""
    return min((_left_of(group, *names) for group, names in _groups(root, groups)), default=math.inf)


def require_left(num_bytes: int, what: str) -> None:
    """Raise `ConfigurationError` where `what`, of so many bytes, does not fit into what limits leave."""
    left = left_bytes()
    if num_bytes > left:
        raise ConfigurationError(
            f"{what} need {num_bytes / _MIB:.0f} MiB of memory and this process's memory limit leaves "
            f"{left / _MIB:.0f} MiB: raise it (WORKER_MEMORY in the env file of a container, MemoryMax of systemd)",
            field="memory",
        )


def _groups(root: Path, groups: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the groups of either version around this process, inner first; `root` itself is a container's own."""
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            top, names = (root / "memory", _FIRST) if controllers else (root, _SECOND)
            group = top / path.strip("/")
            yield from ((each, names) for each in (group, *group.parents) if each.is_relative_to(top))


def _left_of(group: Path, limit_file: str, *used: str) -> float:
    try:
        limit = (group / limit_file).read_text().strip()
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # the root of all groups, or a group outside this container
        return math.inf
    return math.inf if limit == "max" else max(0, int(limit) - sum(int(stat[name]) for name in used))
