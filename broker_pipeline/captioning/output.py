"""Where captions go: a file that is locked, read and appended to, or standard output.

What is written is written whole. Where the disk has no room for a line, the part that it took is taken back, so that
the file ends with a whole line whatever happens.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_pipeline.captioning.log_index import NOWHERE
from broker_pipeline.errors import ConfigurationError, OutputError
from broker_pipeline.process.terminal import printable

STANDARD_OUTPUT = Path("-")
_ADVICE = "run the same command again when that is mended: accepted jobs keep running, and no caption is lost"
_LINE_BYTES = 8192
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class OutputFile:
    """A regular file that one process at a time appends to."""

    def __init__(self, path: Path) -> None:
        """Prepare to open the file at `path`, and to make it and its folder where they are missing."""
        self._path = path
        self._name = printable(path)
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._check_kind(self._path.stat())  # before opening, which waits at a named pipe
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigurationError(f"cannot write {self._name}: {error.strerror}", field="out") from error
        try:
            self._check_kind(os.fstat(self._fd))
            self._lock()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _writing(self._name) if error is None else contextlib.suppress(OSError):
            try:
                os.fsync(self._fd)
            finally:
                os.close(self._fd)

    def lines(self) -> Iterator[bytes]:
        """Yield what the file holds line by line, with line ends."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            yield from file

    def append(self, content: bytes) -> int:
        """Write at the end, whole or not at all, and return where that begins; raises `OutputError`."""
        with _writing(self._name):
            size = os.fstat(self._fd).st_size
            try:
                _write_all(self._fd, content)
            except OSError:
                os.ftruncate(self._fd, size)
                raise
        return size

    def line_at(self, offset: int) -> bytes:
        """Return the line that begins there, or the piece of it before a NUL; raises `OutputError`."""
        with _writing(self._name):
            found = b""
            while (end := _end_of_line(found)) < 0:
                if not (more := os.pread(self._fd, _LINE_BYTES, offset + len(found))):
                    return found
                found += more
        return found[:end]

    def truncate(self, size: int) -> None:
        """Cut off what is beyond `size` bytes."""
        with _writing(self._name):
            os.ftruncate(self._fd, size)

    def _check_kind(self, facts: os.stat_result) -> None:
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigurationError(
                f"{self._name} is {kind_of(facts)}, not a regular file; `--out -` writes to standard output",
                field="out",
            )

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise ConfigurationError(f"cannot lock {self._name}: {error.strerror}", field="out") from error
            raise ConfigurationError(
                f"another run is writing {self._name}; wait for it, or choose another --out", field="out"
            ) from error


class OutputStream:
    """Standard output: nothing is read from it, so that nothing is resumed."""

    def __enter__(self) -> Self:
        if sys.stdout is None:
            raise OutputError("standard output is closed", field="out")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def append(self, content: bytes) -> int:
        """Write, and return that this is nowhere to be read again; raises `OutputError`."""
        with _writing("standard output"):
            _write_all(sys.stdout.fileno(), content)
        return NOWHERE


def kind_of(facts: os.stat_result) -> str:
    """Say what a file is that is not a regular one."""
    return _KINDS.get(stat.S_IFMT(facts.st_mode), "a special file")


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {name}: {error.strerror}; {_ADVICE}", field="out") from error


def _end_of_line(text: bytes) -> int:
    ends = [end for end in (text.find(b"\n"), text.find(b"\0")) if end >= 0]
    return min(ends, default=-1)


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]
