"""One process at a time in a directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from broker_pipeline.errors import ServerStartError


class DirectoryLock:
    """Keeps a second process off a directory. The kernel drops it with the process that holds it."""

    def __init__(self, directory: Path) -> None:
        """Prepare to lock a directory, which need not be there yet."""
        self._directory = directory
        self._fd: int | None = None

    def acquire(self) -> None:
        """Make the directory, for its owner alone, and lock it.

        Raises `ServerStartError` when it cannot be made, or another process has it.
        """
        if self._fd is not None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._directory.chmod(0o700)  # prompts and pictures are nobody else's
            fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ServerStartError(f"cannot write {self._directory}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise ServerStartError(
                f"{self._directory} is in use by another process: stop that one, or choose another directory"
            ) from error
        self._fd = fd

    def release(self) -> None:
        """Let go of the directory; nothing happens when it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
