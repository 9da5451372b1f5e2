"""Joins both ends of messages: what one process sent is what another received, by kind, subject and ids.

conductor      encode│                                encode: its end is when the message leaves
                     └──── wire ────┐
stage-0                             │receive          receive: its beginning is when it has arrived
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from broker_pipeline.tools.trace.spans import ProcessTrace, Span
from broker_pipeline.tracing.activities import ENCODE, RECEIVE

_IDS = ("message", "subject", "epoch", "microbatch", "session", "attempt")


@dataclass(frozen=True, slots=True)
class Message:
    """One message that was both sent and received."""

    sender: ProcessTrace
    receiver: ProcessTrace
    encode: Span
    receive: Span

    @property
    def left(self) -> int:
        """When it left, in nanoseconds."""
        return self.encode.stop

    @property
    def arrived(self) -> int:
        """When it had arrived, in nanoseconds."""
        return self.receive.start


def join_messages(traces: Sequence[ProcessTrace]) -> list[Message]:
    """Return every message of which both ends are in the profile, in the order in which they left.

    A message that was sent again under the same ids is joined in order; both clocks may be apart by less than what
    lies between two tries.
    """
    sent, received = _ends(traces, ENCODE.name), _ends(traces, RECEIVE.name)
    messages = []
    for key, arrivals in received.items():
        for (sender, encode), (receiver, receive) in zip(sent.get(key, ()), arrivals, strict=False):
            messages.append(Message(sender, receiver, encode, receive))
    return sorted(messages, key=lambda message: message.left)


def _ends(traces: Sequence[ProcessTrace], name: str) -> dict[Hashable, list[tuple[ProcessTrace, Span]]]:
    ends: defaultdict[Hashable, list[tuple[ProcessTrace, Span]]] = defaultdict(list)
    for trace in traces:
        for span in trace.spans:
            if span.name == name and "message" in span.facts:
                ends[tuple(span.facts.get(name) for name in _IDS)].append((trace, span))
    for each in ends.values():
        each.sort(key=lambda end: end[1].start)
    return ends
