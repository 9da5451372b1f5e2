"""Bounds how often one event is logged, so that what goes wrong without end fills no disk.

A bucket for each event and level holds a burst and fills at a rate; a line takes one from it, and is left out when
there is none. The next line of that event that is written says how many were left out before it (`num_left_out`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from structlog.typing import EventDict, WrappedLogger


@dataclass(frozen=True, slots=True)
class LogRate:
    """Lines of one event: so many at once, and so many per second."""

    burst: int
    per_s: float


TROUBLE = LogRate(burst=200, per_s=20.0)
"""Warnings and errors."""
WORK = LogRate(burst=10_000, per_s=2_000.0)
"""All others: there are some for every job."""
_TROUBLE_LEVELS = frozenset({"warning", "error", "critical", "exception"})


@dataclass(slots=True)
class _Bucket:
    num_free: float
    filled_at: float
    num_left_out: int = 0


class LogRateLimit:
    """A processor of structlog; the first, so that a line left out costs no more."""

    def __init__(
        self, trouble: LogRate = TROUBLE, work: LogRate = WORK, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._trouble = trouble
        self._work = work
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}

    def __call__(self, _: WrappedLogger, method: str, line: EventDict) -> EventDict:
        """Let a line pass, with the number of those left out before it. Raises `structlog.DropEvent`."""
        num_left_out = self.take(str(line.get("event")), method)
        if num_left_out is None:
            raise structlog.DropEvent
        if num_left_out:
            line["num_left_out"] = num_left_out
        return line

    def take(self, event: str, level: str) -> int | None:
        """Return how many lines of an event were left out before this one, None to leave this one out as well."""
        rate, now = self._trouble if level in _TROUBLE_LEVELS else self._work, self._clock()
        bucket = self._buckets.setdefault((event, level), _Bucket(rate.burst, now))
        bucket.num_free = min(rate.burst, bucket.num_free + rate.per_s * (now - bucket.filled_at))
        bucket.filled_at = now
        if bucket.num_free < 1:
            bucket.num_left_out += 1
            return None
        bucket.num_free -= 1
        num_left_out, bucket.num_left_out = bucket.num_left_out, 0
        return num_left_out
