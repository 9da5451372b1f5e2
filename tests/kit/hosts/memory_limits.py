"""A memory limit for processes, by a control group of this machine: what `mem_limit` of a compose file becomes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

_ROOT = Path("/sys/fs/cgroup")
_FIRST = _ROOT / "memory"
_TOP, _LIMIT = (_FIRST, "memory.limit_in_bytes") if _FIRST.is_dir() else (_ROOT, "memory.max")

needs_memory_limits = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(_TOP, os.W_OK) or (_TOP == _ROOT and not (_TOP / "memory.stat").is_file()),
    reason="needs root and control groups that can be written",
)


@contextmanager
def memory_limit(limit_mib: int) -> Iterator[Path]:
    """Have a group with a limit while the context is open, by whose end its processes have to be gone."""
    group = _TOP / f"bp-{uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / _LIMIT).write_text(str(limit_mib * 2**20))
        yield group
    finally:
        group.rmdir()


def inside(group: Path) -> list[str]:
    """Return what begins the command line of a process that is to be in a group."""
    return ["/bin/sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
