"""A file that is there whole or not at all: written under another name beside its place, and renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from broker_pipeline.captioning.output import kind_of
from broker_pipeline.config import flag_of
from broker_pipeline.errors import ConfigurationError, OutputError
from broker_pipeline.process.terminal import printable

_ADVICE = "run the same command again when that is mended: no caption is lost"


class NewFile:
    """What is written to `stream` gets its name by `commit`. What is there keeps its permissions.

    Raises `OSError` wherever it is used; `ConfigurationError` where no file can stand, or another run is writing it.
    """

    def __init__(self, path: Path, *, field: str = "to") -> None:
        """Open a file beside `path`, in a folder that is made where it is missing. `field` names the flag."""
        self.path = Path(os.path.realpath(path))  # a link stays one
        self._field = field
        self._name = printable(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mode = mode_of(self.path, field=field)
        mark = hashlib.sha256(os.fsencode(self.path.name)).hexdigest()[:16]  # a name as long as its own may be too long
        self._partial = self.path.with_name(f".{mark}.partial")
        self.stream = self._open(mode)

    def commit(self, *, is_synced: bool = True) -> None:
        """Put the file in its place; with `is_synced`, so that a power cut leaves it there whole."""
        self.stream.flush()
        if is_synced:
            os.fsync(self.stream.fileno())
        self._partial.replace(self.path)
        self.stream.close()

    def discard(self) -> None:
        """Remove what is not committed. May be called twice, and after `commit`."""
        if self.stream.closed:
            return
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the disk may be full still
            self.stream.close()

    def _open(self, mode: int | None) -> BinaryIO:
        fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            self._lock(fd)
            os.ftruncate(fd, 0)
            if mode is not None:
                os.fchmod(fd, mode)
            return cast("BinaryIO", os.fdopen(fd, "w+b"))
        except BaseException:
            os.close(fd)
            raise

    def _lock(self, fd: int) -> None:
        """Lock the file against other runs; one that has just got its name must not be touched any more."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(fd), self._partial.stat())
        except FileNotFoundError:
            is_ours = False
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            is_ours = False
        if not is_ours:
            raise ConfigurationError(f"another run is writing {self._name}; wait for it", field=self._field)


def mode_of(path: Path, *, field: str = "to") -> int | None:
    """Return the permissions of a file, None where there is none; `ConfigurationError` for what is no file."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigurationError(f"{printable(path)} is {kind_of(facts)}, not a regular file", field=field)
    return stat.S_IMODE(facts.st_mode)


@contextmanager
def opening(path: Path, *, field: str = "to") -> Iterator[None]:
    """Raise `ConfigurationError` naming file and flag where the system refuses."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"cannot write {printable(path)}: {error.strerror or error}", field=field) from error


@contextmanager
def writing(path: Path, *, field: str = "to") -> Iterator[None]:
    """Raise `OutputError` naming file and flag where the system refuses."""
    try:
        yield
    except OSError as error:
        text = f"cannot write {printable(path)}: {error.strerror or error}; {_ADVICE} ({flag_of(field)})"
        raise OutputError(text, field=field) from error


def nothing_to_replace(path: Path, *, field: str = "to") -> OutputError:
    """Return the error for a run without rows, where an earlier one has left some."""
    reason = "no item has a caption; what an earlier run wrote is kept, and --out has the failures"
    return OutputError(f"{flag_of(field)} {printable(path)}: {reason}", field=field)


def write_whole(path: Path, content: bytes, *, field: str = "to", is_synced: bool = True) -> None:
    """Write a small file; raises `OutputError`, or `ConfigurationError` where none can stand there."""
    with writing(path, field=field):
        file = NewFile(path, field=field)
        try:
            file.stream.write(content)
            file.commit(is_synced=is_synced)
        finally:
            file.discard()
