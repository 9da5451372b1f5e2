"""Spans of messages: encoded and sent here, received there. What joins both ends is subject, kind and ids.

Only messages that are about a microbatch or a session are recorded; others are many and tell nothing.
"""

from __future__ import annotations

import msgspec

from broker_pipeline.tracing.activities import ENCODE, RECEIVE, SEND
from broker_pipeline.tracing.events import Fact
from broker_pipeline.tracing.tracer import tracer


def record_sent(body: msgspec.Struct, subject: str, started_ns: int, encoded_ns: int, num_bytes: int) -> None:
    """Record a message that was encoded from `started_ns` to `encoded_ns` and has been enqueued now."""
    if tracer.is_on and (ids := ids_of(body)):
        facts: dict[str, Fact] = {**ids, "message": type(body).__name__, "subject": subject, "num_bytes": num_bytes}
        tracer.span(ENCODE, started_ns, encoded_ns, **facts)
        tracer.span(SEND, encoded_ns, **facts)


def record_received(body: msgspec.Struct, subject: str, arrived_ns: int, num_bytes: int) -> None:
    """Record a message that had arrived whole at `arrived_ns` and is decoded now."""
    if tracer.is_on and (ids := ids_of(body)):
        tracer.span(RECEIVE, arrived_ns, **ids, message=type(body).__name__, subject=subject, num_bytes=num_bytes)


def ids_of(body: object) -> dict[str, Fact]:
    """Return what a message is about, by the names that spans use for it; nothing for other messages."""
    microbatch, session = getattr(body, "microbatch", None), getattr(body, "session", None)
    if microbatch is not None:
        return {"epoch": getattr(body, "epoch", 0), "microbatch": microbatch}
    if session is not None:
        return {"session": session, "attempt": getattr(body, "attempt", 0)}
    return {}
