"""Recorded spans become events of one process's trace file. Used by the tracer's thread alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from broker_pipeline.tracing.activities import Activity
from broker_pipeline.tracing.clock import Anchor, Clock, SystemClock
from broker_pipeline.tracing.events import Event, Fact, encode, microseconds
from broker_pipeline.tracing.trace_file import TraceFile

Recorded: TypeAlias = tuple[Activity, int, int, int, dict[str, Fact]]
"""What was done, from when to when in nanoseconds of the monotonic clock, by which thread, and facts to show."""

CLOCK_EVENT = "broker_pipeline_clock"
_ANCHOR_EVERY_NS = 5 * 10**9
_FIRST_ROW = 100  # rows that are no threads; below stand the threads


class EventWriter:
    """Turns spans into lines of a trace file. Times are of the wall clock, by the first anchor."""

    def __init__(self, path: Path, service: str, clock: Clock | None = None, pid: int | None = None) -> None:
        """Begin the file. Raises `OSError`."""
        self.path = path
        self.name = service
        """What the process is called; may be set at any time before the end."""
        self.num_events = 0
        self._service = service
        self._pid = pid or os.getpid()
        self._clock = clock or SystemClock()
        self._anchor = self._clock.anchor()
        self._last_anchor = self._anchor
        self._written_name = ""
        self._rows: dict[int | str, int] = {}
        self._num_slices = 0
        self._file = TraceFile(path, encode(self._clock_event(self._anchor)))

    def write(self, recorded: Sequence[Recorded], threads: Mapping[int, str]) -> None:
        """Append spans; `threads` has the names of all threads in them. Raises `OSError`."""
        lines: list[bytes] = []
        if self.name != self._written_name:
            self._written_name = self.name
            lines.append(encode(Event(ph="M", name="process_name", pid=self._pid, args={"name": self.name})))
        for activity, start, stop, thread, facts in recorded:
            lines += self._span(activity, start, stop, self._row(activity, thread, threads, lines), facts)
        self.num_events += len(recorded)
        anchor = self._clock.anchor()
        if anchor.monotonic_ns - self._last_anchor.monotonic_ns >= _ANCHOR_EVERY_NS:
            lines.append(encode(self._clock_event(anchor)))
            self._last_anchor = anchor
        if lines:
            self._file.append(lines)

    def close(self) -> None:
        """End the file with a last look at both clocks. Raises `OSError`."""
        self._file.append([encode(self._clock_event(self._clock.anchor()))])
        self._file.close()

    def _clock_event(self, anchor: Anchor) -> Event:
        facts = {
            "wall_ns": anchor.wall_ns,
            "monotonic_ns": anchor.monotonic_ns,
            "clock": self._clock.name,
            "host": self._clock.host,
            "service": self._service,
        }
        return Event(ph="M", name=CLOCK_EVENT, pid=self._pid, args=facts)

    def _row(self, activity: Activity, thread: int, threads: Mapping[int, str], lines: list[bytes]) -> int:
        """Return the number of the row, whose name goes into the file before its first span."""
        key = thread if activity.row is None else activity.row
        number = self._rows.get(key)
        if number is None:
            number = self._rows[key] = len(self._rows) + (1 if activity.row is None else _FIRST_ROW)
            name = threads[thread] if activity.row is None else activity.row
            lines.append(encode(Event(ph="M", name="thread_name", pid=self._pid, tid=number, args={"name": name})))
        return number

    def _span(self, activity: Activity, start: int, stop: int, row: int, facts: dict[str, Fact]) -> list[bytes]:
        name, kind, pid, offset = activity.name, activity.kind, self._pid, self._anchor.offset_ns
        begin, stop = microseconds(start + offset), max(start, stop)
        if not activity.overlaps:
            duration = microseconds(stop - start)
            return [encode(Event(ph="X", name=name, cat=kind, pid=pid, tid=row, ts=begin, dur=duration, args=facts))]
        self._num_slices += 1
        key, end = f"{pid}.{self._num_slices}", microseconds(stop + offset)
        return [
            encode(Event(ph="b", name=name, cat=kind, pid=pid, tid=row, ts=begin, id=key, args=facts)),
            encode(Event(ph="e", name=name, cat=kind, pid=pid, tid=row, ts=end, id=key)),
        ]


def open_writer(directory: Path, service: str) -> EventWriter:
    """Create the trace file of this process. Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    host = "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
    return EventWriter(directory / f"{service}-{host}-{os.getpid()}.json", service)
