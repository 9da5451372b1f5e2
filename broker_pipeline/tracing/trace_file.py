"""A Chrome trace on disk that is whole JSON after every write, so that a killed process leaves a readable one.

    {"displayTimeUnit":"ms","traceEvents":[          one event a line; whatever is appended overwrites the tail
    {"ph":"M",…},                                    `\n]}\n` and writes it again behind itself, in one system call
    {"ph":"X",…}
    ]}

Format: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_HEAD = b'{"displayTimeUnit":"ms","traceEvents":[\n'
_SEPARATOR = b",\n"
_TAIL = b"\n]}\n"
_LINES_PER_WRITE = 4096


class TraceFile:
    """Events of one process, appended."""

    def __init__(self, path: Path, first: bytes) -> None:
        """Create the file with a first event. Raises `OSError`."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._end = 0
        self._write(_HEAD + first)

    def append(self, events: Sequence[bytes]) -> None:
        """Write encoded events. Raises `OSError`; what was written before stays readable."""
        for at in range(0, len(events), _LINES_PER_WRITE):
            self._write(_SEPARATOR + _SEPARATOR.join(events[at : at + _LINES_PER_WRITE]))

    def close(self) -> None:
        """Close the file, which is whole already."""
        os.close(self._fd)

    def _write(self, chunk: bytes) -> None:
        whole = chunk + _TAIL
        if os.pwrite(self._fd, whole, self._end) == len(whole):
            self._end += len(chunk)
            return
        os.ftruncate(self._fd, self._end)  # the disk is full: back to what was whole, which had room
        if self._end:
            os.pwrite(self._fd, _TAIL, self._end)
        raise OSError("the disk took only a part of it")
