"""Reads the trace files that processes have written, also those of processes that were killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.trace.spans import ProcessTrace, Span
from broker_pipeline.tracing.clock import Anchor
from broker_pipeline.tracing.event_writer import CLOCK_EVENT
from broker_pipeline.tracing.events import Event, decode, nanoseconds

_ORDER = {"gateway": 0, "conductor": 1, "vision": 2, "stage": 3}


def read_profile(directory: Path) -> list[ProcessTrace]:
    """Read the traces of all processes in a directory, in order of service and name.

    Raises:
        ConfigurationError: there is none, or a file is none of ours.
    """
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is no directory; name the one that was given to --profile")
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise ConfigurationError(f"{directory} has no *.json; did a service run with --profile {directory}?")
    traces = [read_trace(path) for path in paths]
    return sorted(traces, key=lambda trace: (_ORDER.get(trace.service, len(_ORDER)), trace.name, trace.began_ns))


def read_trace(path: Path) -> ProcessTrace:
    """Read the trace of one process. Raises `ConfigurationError` when the file is none."""
    events = _events(path)
    first = next(events, None)
    if first is None or first.name != CLOCK_EVENT:
        raise ConfigurationError(f"{path} was not written by --profile; keep a profile's directory free of other files")
    facts = first.args
    trace = ProcessTrace(facts["service"], facts["service"], facts["host"], first.pid, facts["clock"], [_anchor(first)])
    rows: dict[int, str] = {}
    begun: dict[str, Span] = {}
    for event in events:
        if event.ph == "M":
            _take_metadata(trace, rows, event)
        elif event.ph == "e":
            if span := begun.pop(event.id, None):
                span.stop = nanoseconds(event.ts)
                trace.spans.append(span)
        else:
            span = _span(event, rows)
            if event.ph == "b":
                begun[event.id] = span
            else:
                trace.spans.append(span)
    return trace


def _take_metadata(trace: ProcessTrace, rows: dict[int, str], event: Event) -> None:
    if event.name == CLOCK_EVENT:
        trace.anchors.append(_anchor(event))
    elif event.name == "process_name":
        trace.name = event.args["name"]
    elif event.name == "thread_name":
        rows[event.tid] = event.args["name"]


def _anchor(event: Event) -> Anchor:
    return Anchor(event.args["wall_ns"], event.args["monotonic_ns"])


def _span(event: Event, rows: dict[int, str]) -> Span:
    start = nanoseconds(event.ts)
    is_async = event.ph == "b"
    return Span(
        name=event.name,
        kind=event.cat,
        row=rows.get(event.tid, str(event.tid)),
        start=start,
        stop=start if is_async else start + nanoseconds(event.dur),
        is_async=is_async,
        facts=event.args,
    )


def _events(path: Path) -> Iterator[Event]:
    """Yield the events of a file, a line each; a last line that was cut off is left out."""
    with path.open("rb") as lines:
        if not lines.readline().startswith(b"{"):
            return
        for line in lines:
            text = line.rstrip().rstrip(b",")
            if not text.startswith(b"{"):
                return
            try:
                yield decode(text)
            except (msgspec.MsgspecError, ValueError) as error:
                if line.endswith(b"\n"):
                    raise ConfigurationError(f"{path}: {error}") from error
                return
