"""Puts the traces of all processes onto one time axis.

Processes of one machine measure by one monotonic clock, so that they share what is added to it to get the wall clock:
the middle of all anchors of the machine. Between machines there are only wall clocks, which NTP keeps together within
a millisecond or so, more than a message takes. Where messages went both ways their times say more:

    A ──── d1 ───► B        seen with B's clock ahead by x:  d1 + x   and   d2 - x
    A ◄─── d2 ──── B        with equal fastest ways, x is half the difference (as in NTP, RFC 5905 §8)
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from broker_pipeline.tools.trace.messages import Message, join_messages
from broker_pipeline.tools.trace.spans import ProcessTrace

_STEP_NS = 1_000_000


@dataclass(frozen=True, slots=True)
class Alignment:
    """What was found out about the clocks. Nanoseconds, by host."""

    steps: dict[str, int]
    """By how much a host's wall clock was set or slewed during the profile, where that is more than a millisecond."""
    skews: dict[str, int]
    """By how much a host's wall clock is ahead of the first host's, as messages tell; nothing for hosts without."""


def align(traces: Sequence[ProcessTrace]) -> Alignment:
    """Move the spans of all traces onto one axis, in place."""
    machines: defaultdict[str, list[ProcessTrace]] = defaultdict(list)
    for trace in traces:
        machines[trace.clock].append(trace)
    steps = {}
    for machine in machines.values():
        offsets = [anchor.offset_ns for trace in machine for anchor in trace.anchors]
        if max(offsets) - min(offsets) > _STEP_NS:
            steps[machine[0].host] = max(offsets) - min(offsets)
        common = statistics.median_low(offsets)
        for trace in machine:
            _shift(trace, common - trace.offset_ns)
    return Alignment(steps, _align_machines(list(machines.values())))


def _align_machines(machines: Sequence[Sequence[ProcessTrace]]) -> dict[str, int]:
    """Set each machine's clock by that of the machines before it, in the order in which messages reach them."""
    if len(machines) < 2:
        return {}
    messages = join_messages([trace for machine in machines for trace in machine])
    skews = {machines[0][0].clock: 0}
    named: dict[str, int] = {}
    while found := _next_skew(messages, skews):
        clock, skew = found
        skews[clock] = skew
        for trace in next(machine for machine in machines if machine[0].clock == clock):
            _shift(trace, -skew)
            named[trace.host] = skew
    return named


def _next_skew(messages: Sequence[Message], known: dict[str, int]) -> tuple[str, int] | None:
    """Return a clock that is not known yet, and how far it is ahead of one that is set already."""
    fastest: dict[tuple[str, str], int] = {}
    for message in messages:
        pair = (message.sender.clock, message.receiver.clock)
        took = message.arrived - message.left
        fastest[pair] = min(fastest.get(pair, took), took)
    for (sender, receiver), there in fastest.items():
        back = fastest.get((receiver, sender))
        if sender in known and receiver not in known and back is not None:
            return receiver, (there - back) // 2
    return None


def _shift(trace: ProcessTrace, by: int) -> None:
    if by:
        for span in trace.spans:
            span.start += by
            span.stop += by
