"""Reads one picture's file, whatever it turns out to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from broker_pipeline.captioning.output import kind_of
from broker_pipeline.errors import MediaTooLargeError, UnreadableFileError

MAX_FILE_BYTES = 512 * 1024 * 1024
"""Larger files are not even read; the gateway's own limit is far below."""


def read_file(path: Path) -> bytes:
    """Return a file's bytes. Raises `UnreadableFileError` or `MediaTooLargeError`.

    Special files are not opened: a named pipe would be waited at, and a device may never end.
    """
    try:
        _check(path.stat())
        with path.open("rb") as file:
            _check(os.fstat(file.fileno()))
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # no name has a NUL
        raise UnreadableFileError(getattr(error, "strerror", None) or str(error)) from error
    check_size(len(content))
    return content


def check_size(num_bytes: int) -> None:
    """Raise `MediaTooLargeError` for more than are read of one picture."""
    if num_bytes > MAX_FILE_BYTES:
        raise MediaTooLargeError(f"the file has more than {MAX_FILE_BYTES} bytes")


def _check(facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise UnreadableFileError(f"{kind_of(facts)}, not a regular file")
    check_size(facts.st_size)
