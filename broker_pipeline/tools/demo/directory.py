"""Where a demo keeps what it makes: a temporary directory that no demo outlives for long, however it ends."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.directory_lock import DirectoryLock

_PREFIX = "broker-pipeline-demo-"


@contextmanager
def demo_directory() -> Iterator[Path]:
    """Make a directory for one demo and remove it at the end, and first those of demos that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_if_dead(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        lock = DirectoryLock(Path(name))
        lock.acquire()
        try:
            yield Path(name)
        finally:
            lock.release()


def _remove_if_dead(directory: Path) -> None:
    """Remove a directory of ours whose lock nobody holds; one without a lock is just being made."""
    facts = directory.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or not (directory / "lock").exists():
        return
    lock = DirectoryLock(directory)
    try:
        lock.acquire()
    except ServerStartError:
        return
    shutil.rmtree(directory, ignore_errors=True)
    lock.release()
