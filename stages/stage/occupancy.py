"""How a stage's time divides: computing, a bubble (sessions are open, nothing is here), or idle.

    microbatches inside    1────────2───1────────0          1─────────0
                           │ enter    enter  leave leave    │ enter   │ leave, the last session is closed
    time counts as         └────────── busy ─────┴─ bubble ─┴── busy ─┴─ idle ─ …

Microbatches may overlap: the next one is launched while the GPU still computes the last. For any thread.
"""

from __future__ import annotations

import threading
import time

from broker_pipeline.tracing.activities import BUBBLE
from broker_pipeline.tracing.tracer import tracer


class Occupancy:
    """Seconds by what a stage did, since it was started. All times that are passed in: nanoseconds, monotonic."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._since = 0
        self._is_bubble = False
        self._busy_ns = 0
        self._bubble_ns = 0

    def enter(self, now: int | None = None) -> None:
        """Begin a microbatch."""
        now = time.monotonic_ns() if now is None else now
        with self._lock:
            if self._num_inside == 0:
                if self._is_bubble:
                    self._bubble_ns += now - self._since
                    tracer.span(BUBBLE, self._since, now)
                self._is_bubble, self._since = False, now
            self._num_inside += 1

    def leave(self, *, has_sessions: bool, now: int | None = None) -> None:
        """End a microbatch; what follows is a bubble where sessions are still open."""
        now = time.monotonic_ns() if now is None else now
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._busy_ns += now - self._since
                self._is_bubble, self._since = has_sessions, now

    @property
    def busy_s(self) -> float:
        """Seconds in which at least one microbatch was inside, up to now."""
        return (self._busy_ns + (self._passed_ns() if self._num_inside else 0)) / 1e9

    @property
    def bubble_s(self) -> float:
        """Seconds in which sessions were open and no microbatch was inside, up to now."""
        return (self._bubble_ns + (self._passed_ns() if self._is_bubble else 0)) / 1e9

    def _passed_ns(self) -> int:
        return max(0, time.monotonic_ns() - self._since)
