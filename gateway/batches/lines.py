"""Cuts a stream of bytes into the lines of a JSONL file. Pure.

A line ends with a line feed, with or without a carriage return before it, and the last one may end without. A byte
order mark in front is passed over. Blank lines are no requests, but count. Of a line that is too long nothing is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank. `content` is None where it is too long."""

    number: int
    """From 1, as editors count."""
    offset: int
    """Of its first byte in the file."""
    content: bytes | None


class LineCutter:
    """Takes a file's bytes in order, from the beginning of a line on."""

    def __init__(self, max_bytes: int, offset: int = 0) -> None:
        """Keep lines of up to `max_bytes`; `offset` is that of the first byte to come."""
        self._max_bytes = max_bytes
        self._offset = offset
        self._number = 1
        self._held = bytearray()
        self._num_dropped = 0

    def feed(self, chunk: bytes) -> list[Line]:
        """Return the lines that end in these bytes."""
        *ends, rest = chunk.split(b"\n")
        lines = [line for end in ends if (line := self._end(end, 1)) is not None]
        self._hold(rest)
        return lines

    def close(self) -> list[Line]:
        """Return the last line, where it does not end with a line feed."""
        line = self._end(b"", 0)
        return [] if line is None else [line]

    def _hold(self, content: bytes) -> None:
        self._held += content
        if self._num_dropped or len(self._held) > self._max_bytes:
            self._num_dropped += len(self._held)
            self._held.clear()

    def _end(self, content: bytes, num_end: int) -> Line | None:
        self._hold(content)
        num_bytes = self._num_dropped or len(self._held)
        number, offset, is_whole = self._number, self._offset, not self._num_dropped
        line = bytes(self._held)
        self._held.clear()
        self._num_dropped = 0
        self._number += 1
        self._offset += num_bytes + num_end
        if is_whole:
            line = line.removeprefix(_BOM) if offset == 0 else line
            return Line(number, offset, line) if line.strip() else None
        return Line(number, offset, None)
