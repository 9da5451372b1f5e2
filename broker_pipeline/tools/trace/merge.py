"""Writes a joined profile as one Chrome trace: processes in order, their rows, arrows from one to the next."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from broker_pipeline.tools.trace.messages import Message
from broker_pipeline.tools.trace.profile import Profile, in_order
from broker_pipeline.tools.trace.spans import ProcessTrace, Span
from broker_pipeline.tracing.events import Event, encode, microseconds
from broker_pipeline.tracing.trace_file import TraceFile

_CHUNK = 4096
_FIRST_ROWS = (
    "event loop",
    "in flight",
    "wire",
    "queue",
    "compute",
    "collect",
    "device",
    "device copies",
    "tower",
    "bubbles",
    "sending",
)


def write_merged(profile: Profile, path: Path) -> int:
    """Write the trace and return its number of events. Its zero is the first span of the profile.

    Raises `OSError`.
    """
    events = _events(profile)
    file = TraceFile(path, encode(next(events)))
    num_events, lines = 1, []
    for event in events:
        lines.append(encode(event))
        if len(lines) == _CHUNK:
            file.append(lines)
            num_events += len(lines)
            lines = []
    file.append(lines)
    file.close()
    return num_events + len(lines)


def _events(profile: Profile) -> Iterator[Event]:
    began = profile.began
    yield Event(ph="M", name="profile", pid=0, args=_facts(profile))
    numbers = count(1)
    places: dict[int, tuple[int, dict[str, int]]] = {}
    for place, (process, name) in enumerate(zip(profile.processes, in_order(profile.processes), strict=True), start=1):
        rows = {row: number for number, row in enumerate(_rows(process), start=1)}
        places[id(process)] = (place, rows)
        yield from _names(process, name, place, rows)
        for span in process.spans:
            yield from _slices(span, began, place, rows[span.row], numbers)
    for message in profile.messages:
        yield from _arrow(message, began, places, next(numbers))


def _facts(profile: Profile) -> dict[str, object]:
    return {
        "zero_wall_ns": profile.began,
        "hosts": sorted({process.host for process in profile.processes}),
        "clock_steps_ns": profile.alignment.steps,
        "clock_skews_ns": profile.alignment.skews,
    }


def _rows(process: ProcessTrace) -> list[str]:
    found = {span.row for span in process.spans}
    known = [row for row in _FIRST_ROWS if row in found]
    return known + sorted(found - set(known))


def _names(process: ProcessTrace, name: str, place: int, rows: dict[str, int]) -> Iterator[Event]:
    shown = f"{name} on {process.host}"
    yield Event(ph="M", name="process_name", pid=place, args={"name": shown})
    yield Event(ph="M", name="process_sort_index", pid=place, args={"sort_index": place})
    for row, number in rows.items():
        yield Event(ph="M", name="thread_name", pid=place, tid=number, args={"name": row})
        yield Event(ph="M", name="thread_sort_index", pid=place, tid=number, args={"sort_index": number})


def _slices(span: Span, began: int, place: int, row: int, numbers: Iterator[int]) -> Iterator[Event]:
    name, kind, start, facts = span.name, span.kind, microseconds(span.start - began), span.facts
    if not span.is_async:
        duration = microseconds(span.duration)
        yield Event(ph="X", name=name, cat=kind, pid=place, tid=row, ts=start, dur=duration, args=facts)
        return
    key, stop = f"{next(numbers)}", microseconds(span.stop - began)
    yield Event(ph="b", name=name, cat=kind, pid=place, tid=row, ts=start, id=key, args=facts)
    yield Event(ph="e", name=name, cat=kind, pid=place, tid=row, ts=stop, id=key)


def _arrow(message: Message, began: int, places: dict[int, tuple[int, dict[str, int]]], number: int) -> Iterator[Event]:
    """Draw an arrow from one slice to the other; each end has to lie inside of its slice."""
    name, key = message.encode.facts["message"], f"{number}"
    place, rows = places[id(message.sender)]
    yield Event(
        ph="s", name=name, cat="wire", pid=place, tid=rows[message.encode.row], id=key,
        ts=microseconds(message.encode.start - began),
    )  # fmt: skip
    place, rows = places[id(message.receiver)]
    yield Event(
        ph="f", bp="e", name=name, cat="wire", pid=place, tid=rows[message.receive.row], id=key,
        ts=microseconds(message.receive.start - began),
    )  # fmt: skip
