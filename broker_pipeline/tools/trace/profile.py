"""A profile of several processes on one axis, with what only shows when they are joined: the way of each message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.trace.alignment import Alignment, align
from broker_pipeline.tools.trace.messages import Message, join_messages
from broker_pipeline.tools.trace.reading import read_profile
from broker_pipeline.tools.trace.spans import ProcessTrace, Span
from broker_pipeline.tracing.activities import COMPLETE, ENCODE, IN_FLIGHT, OUTBOX, WIRE, Activity


@dataclass(frozen=True, slots=True)
class Profile:
    """Every process, all spans in nanoseconds of one wall clock."""

    processes: list[ProcessTrace]
    messages: list[Message]
    alignment: Alignment

    @property
    def began(self) -> int:
        """When the first span began."""
        return min(span.start for process in self.processes for span in process.spans)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a profile, in seconds since its first span; `length_s` None: to the end."""

    start_s: float = 0.0
    length_s: float | None = None


def load_profile(directory: Path, window: Window | None = None) -> Profile:
    """Read and join the traces in a directory.

    Raises:
        ConfigurationError: the directory holds no profile, or nothing of the window.
    """
    processes = read_profile(directory)
    alignment = align(processes)
    messages = join_messages(processes)
    for message in messages:
        message.receiver.spans.append(_wire(message))
    for process in processes:
        process.spans += [*_in_flight(process), *_outbox_waits(process)]
        process.spans.sort(key=lambda span: span.start)
    profile = Profile([process for process in processes if process.spans], messages, alignment)
    if not profile.processes:
        raise ConfigurationError(f"nothing was recorded in {directory}")
    return profile if window is None else _cut(profile, window)


def _wire(message: Message) -> Span:
    facts = {**message.encode.facts, "sender": message.sender.name}
    return _made(WIRE, message.left, message.arrived, facts)


def _in_flight(process: ProcessTrace) -> list[Span]:
    """Return a span for each microbatch of a conductor: from the time it is encoded until it is completed."""
    sent: dict[tuple[int, int], Span] = {}
    spans = []
    for span in sorted(process.spans, key=lambda span: span.start):
        if span.microbatch is None:
            continue
        if span.name == ENCODE.name and span.facts.get("message") == "Envelope":
            sent[span.microbatch] = span
        elif span.name == COMPLETE.name and (began := sent.pop(span.microbatch, None)):
            spans.append(_made(IN_FLIGHT, began.start, span.stop, span.facts))
    return spans


def _outbox_waits(process: ProcessTrace) -> list[Span]:
    """Return a span for each microbatch of a stage: from the end of its computation until it is encoded."""
    computed: dict[tuple[int, int], int] = {}
    encoded: dict[tuple[int, int], Span] = {}
    for span in process.spans:
        if span.microbatch is None:
            continue
        if span.kind in {"compute", "copy"}:
            computed[span.microbatch] = max(computed.get(span.microbatch, 0), span.stop)
        elif span.name == ENCODE.name:
            encoded[span.microbatch] = span
    return [
        _made(OUTBOX, stop, encoded[key].start, {"epoch": key[0], "microbatch": key[1]})
        for key, stop in computed.items()
        if key in encoded and encoded[key].start > stop
    ]


def _made(activity: Activity, start: int, stop: int, facts: dict[str, object]) -> Span:
    return Span(
        name=activity.name,
        kind=activity.kind,
        row=activity.row or "",
        start=start,
        stop=max(start, stop),
        is_async=activity.overlaps,
        facts=facts,
    )


def _cut(profile: Profile, window: Window) -> Profile:
    start = profile.began + round(window.start_s * 1e9)
    stop = start + round(window.length_s * 1e9) if window.length_s is not None else None

    def is_inside(span: Span) -> bool:
        return span.stop >= start and (stop is None or span.start < stop)

    for process in profile.processes:
        process.spans = [span for span in process.spans if is_inside(span)]
    processes = [process for process in profile.processes if process.spans]
    if not processes:
        raise ConfigurationError("nothing was recorded in this part of the profile", field="start_s")
    messages = [each for each in profile.messages if is_inside(each.encode) and is_inside(each.receive)]
    return Profile(processes, messages, profile.alignment)


def in_order(processes: Sequence[ProcessTrace]) -> list[str]:
    """Return a name for each process that no other has: its own, and its id where a worker was started again."""
    names = [process.name for process in processes]
    return [
        f"{process.name} ({process.pid})" if names.count(process.name) > 1 else process.name for process in processes
    ]
