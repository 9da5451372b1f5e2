"""Reads one picture's file, whatever it turns out to be."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from broker_pipeline.captioning.output import kind_of
from broker_pipeline.errors import MediaTooLargeError, UnreadableFileError

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Larger files are not even read; the gateway's own limit is far below."""


def read_picture(path: Path) -> tuple[bytes, str]:
    """Return a file's bytes and their SHA-256. Raises `UnreadableFileError` or `MediaTooLargeError`.

    Special files are not opened: a named pipe would be waited at, and a device may never end.
    """
    try:
        _check(path.stat())
        with path.open("rb") as file:
            _check(os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UnreadableFileError(error.strerror or str(error)) from error
    if len(content) > MAX_FILE_BYTES:
        raise _too_large()
    return content, hashlib.sha256(content).hexdigest()


def _check(facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise UnreadableFileError(f"{kind_of(facts)}, not a regular file")
    if facts.st_size > MAX_FILE_BYTES:
        raise _too_large()


def _too_large() -> MediaTooLargeError:
    return MediaTooLargeError(f"the file has more than {MAX_FILE_BYTES} bytes")
