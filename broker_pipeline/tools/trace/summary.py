"""What a profile comes to: where each worker's time went, and what a microbatch cost on its way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from broker_pipeline.tools.trace.profile import Profile, in_order
from broker_pipeline.tools.trace.spans import ProcessTrace, Span
from broker_pipeline.tracing.activities import BUBBLE, DEVICE, IN_FLIGHT, OUTBOX, PLAN, SEND, TELL, TOWER

_PARTS = ("wire", "queue", "compute", "copy", "outbox", "publish")
_MICROBATCH_MESSAGES = frozenset({"Envelope", "MicrobatchResult"})
_OF_ALL = frozenset({PLAN.name, TELL.name})
"""Work of the conductor that is done for several microbatches at once."""


class ActivitySummary(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of work of one process."""

    num: int
    mean_ms: float
    p95_ms: float
    share: float
    """Share of the process's time in which at least one of these went on."""


class WorkerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One process. Shares are of the time between its first and last microbatch; means are per microbatch."""

    name: str
    service: str
    host: str
    span_s: float
    """Seconds between its first and its last work."""
    num_microbatches: int
    busy: float
    """Share of the time in which it computed: the GPU where it has one, else its threads."""
    bubble: float
    """Share of the time in which it held sessions and had nothing to compute."""
    wire_ms: float
    """From the sender's last byte encoded to the message whole."""
    queue_ms: float
    """Checked and not begun."""
    outbox_ms: float
    """Computed and not yet being sent."""
    compute_ms: float
    copy_ms: float
    publish_ms: float
    host_us: dict[str, float]
    """CPU work for each microbatch, by what it was."""
    other: dict[str, ActivitySummary]
    """What was done for sessions and requests, by what it was."""


class ProfileSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A whole profile."""

    span_s: float
    num_microbatches: int
    round_ms: dict[str, float]
    """Mean time of a microbatch from leaving the conductor to its completion, and what it consisted of."""
    workers: tuple[WorkerSummary, ...]
    clock_steps_ns: dict[str, int]
    clock_skews_ns: dict[str, int]


def summarise(profile: Profile) -> ProfileSummary:
    """Return the figures of a profile."""
    names = in_order(profile.processes)
    workers = tuple(_worker(process, name) for process, name in zip(profile.processes, names, strict=True))
    spans = [span for process in profile.processes for span in process.spans]
    rounds = [span for span in spans if span.name == IN_FLIGHT.name and span.row == IN_FLIGHT.row]
    return ProfileSummary(
        span_s=_extent(spans) / 1e9,
        num_microbatches=len(rounds),
        round_ms=_round(rounds, profile.processes),
        workers=workers,
        clock_steps_ns=profile.alignment.steps,
        clock_skews_ns=profile.alignment.skews,
    )


def _worker(process: ProcessTrace, name: str) -> WorkerSummary:
    worked = [span for span in process.spans if span.microbatch is not None] or process.spans
    extent = _extent([span for span in worked if span.kind != "wire"] or worked) or 1
    num = len({span.microbatch for span in worked if span.microbatch is not None})
    has_device = any(span.row == DEVICE.row for span in process.spans)
    times = _by_kind(worked, has_device=has_device)
    computing = [span for span in process.spans if _is_computing(span, has_device=has_device)]
    bubbles = [span for span in process.spans if span.kind == "bubble"]
    return WorkerSummary(
        name=name,
        service=process.service,
        host=process.host,
        span_s=extent / 1e9,
        num_microbatches=num,
        busy=min(1.0, _covered(computing) / extent),
        bubble=min(1.0, _covered(bubbles) / extent),
        host_us=_host_work(process, num, has_device=has_device),
        other=_other_work(process.spans),
        **{f"{kind}_ms": times[kind] / max(1, num) / 1e6 for kind in _PARTS},
    )


def _is_computing(span: Span, *, has_device: bool) -> bool:
    return span.kind == "compute" and (span.row == DEVICE.row or span.name == TOWER.name or not has_device)


def _by_kind(spans: Iterable[Span], *, has_device: bool) -> defaultdict[str, int]:
    """Add up the time that went into microbatches, by kind; messages that are about something else do not count."""
    times: defaultdict[str, int] = defaultdict(int)
    for span in spans:
        if span.microbatch is None or span.facts.get("message", "Envelope") not in _MICROBATCH_MESSAGES:
            continue
        if span.row == OUTBOX.row:
            times["outbox"] += span.duration
        elif span.kind != "compute" or _is_computing(span, has_device=has_device):
            times[span.kind] += span.duration
    return times


def _other_work(spans: list[Span]) -> dict[str, ActivitySummary]:
    """Sum up what has no microbatch; messages by what they hold."""
    found: defaultdict[str, list[Span]] = defaultdict(list)
    for span in spans:
        if span.microbatch is None and span.name not in {*_OF_ALL, BUBBLE.name}:
            message = span.facts.get("message")
            found[f"{span.name} {message}" if message else span.name].append(span)
    extent = _extent(spans) or 1
    return {name: _activity(found[name], extent) for name in sorted(found)}


def _activity(spans: list[Span], extent: int) -> ActivitySummary:
    times = sorted(span.duration for span in spans)
    return ActivitySummary(
        num=len(times),
        mean_ms=sum(times) / len(times) / 1e6,
        p95_ms=times[int(0.95 * (len(times) - 1))] / 1e6,
        share=_covered(spans) / extent,
    )


def _host_work(process: ProcessTrace, num_microbatches: int, *, has_device: bool) -> dict[str, float]:
    """Return microseconds per microbatch of all CPU work for microbatches."""
    times: defaultdict[str, int] = defaultdict(int)
    for span in process.spans:
        is_launch = span.kind == "compute" and has_device and span.row != DEVICE.row
        is_host = span.kind in {"host", "publish", "copy"} or is_launch
        if (is_host and span.microbatch is not None) or span.name in _OF_ALL:
            times[span.name] += span.duration
    return {name: time / max(1, num_microbatches) / 1e3 for name, time in times.items()}


def _round(rounds: Iterable[Span], processes: Iterable[ProcessTrace]) -> dict[str, float]:
    lengths = {span.microbatch: span.duration for span in rounds}
    if not lengths:
        return {}
    parts: defaultdict[str, int] = defaultdict(int)
    for process in processes:
        has_device = any(span.row == DEVICE.row for span in process.spans)
        # Sending goes on while the message is on the wire already.
        counted = [
            span
            for span in process.spans
            if span.microbatch in lengths and span.row not in {IN_FLIGHT.row, SEND.row} and span.kind != "wait"
        ]
        for kind, time in _by_kind(counted, has_device=has_device).items():
            parts[kind] += time
    in_ms = {kind: time / len(lengths) / 1e6 for kind, time in sorted(parts.items())}
    return {"whole": sum(lengths.values()) / len(lengths) / 1e6, **in_ms}


def _extent(spans: Iterable[Span]) -> int:
    kept = list(spans)
    return max(span.stop for span in kept) - min(span.start for span in kept)


def _covered(spans: Iterable[Span]) -> int:
    """Return the time in which at least one of the spans went on."""
    total, reached = 0, None
    for start, stop in sorted((span.start, span.stop) for span in spans):
        if reached is None or start > reached:
            total += stop - start
            reached = stop
        elif stop > reached:
            total += stop - reached
            reached = stop
    return total
