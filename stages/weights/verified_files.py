"""Which weight files were found to be what the export wrote, so that a restart need not hash them again.

    ~/.cache/broker-pipeline/verified/{hash of the path}    holds a hash of what was verified and of the file's state

A file that was written, replaced or touched since has another state, and is hashed again.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import astuple, dataclass
from io import FileIO
from pathlib import Path
from typing import Self

import msgspec
import structlog

log = structlog.get_logger()

_YOUNG_S = 2.0
"""A change in the same tick of a file system's clock would not show: younger files are not remembered."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What changes when a file does. Copying over it can keep `mtime_ns`, not `ctime_ns`."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, file: FileIO) -> Self:
        """Return the state of an open file."""
        stat = os.fstat(file.fileno())
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


class VerifiedFiles:
    """The files that this user has verified. Where nothing can be kept, each run verifies."""

    def __init__(self, directory: Path) -> None:
        """Keep the notes in a directory, which need not be there yet."""
        self._directory = directory
        self._is_kept = True

    @classmethod
    def in_cache(cls) -> Self:
        """Keep the notes in the user's cache directory."""
        base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises
        return cls(base / "broker-pipeline" / "verified")

    def holds(self, path: Path, state: FileState, content: str) -> bool:
        """Say whether a file in this state was found to hold `content`, a hash over what it should be."""
        try:
            return self._note(path).read_text() == _seal(path, state, content)
        except OSError:
            return False

    def add(self, path: Path, state: FileState, content: str) -> None:
        """Note that a file was verified."""
        if not self._is_kept or time.time() - max(state.mtime_ns, state.ctime_ns) / 1e9 < _YOUNG_S:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._note(path).write_text(_seal(path, state, content))
        except OSError as error:
            self._is_kept = False
            log.info("verification_not_kept", directory=str(self._directory), reason=error.strerror)

    def _note(self, path: Path) -> Path:
        return self._directory / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()


def _seal(path: Path, state: FileState, content: str) -> str:
    return hashlib.sha256(msgspec.json.encode([os.fsencode(path.resolve()), astuple(state), content])).hexdigest()
