"""Whether a worker that was to blame for failures is used. Pure.

          num_blames within window_s            backoff_s over, and it answers a probe
    closed ──────────────────────────► open ──────────────────────────────────────────► half-open
      ▲                                  ▲                                               │     │
      │                                  └───────── a failure: twice the backoff ────────┘     │
      └──────────────────────────── num_trials computations without a failure ─────────────────┘

Open: it gets nothing. Half-open: one session at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """How soon a worker is left out, and for how long. Times in seconds."""

    num_blames: int = 3
    window_s: float = 60.0
    """How long a blame counts."""
    num_trials: int = 8
    """Computations without a failure that close a half-open breaker."""
    backoff_s: float = 1.0
    max_backoff_s: float = 300.0
    forget_s: float = 600.0
    """How long after it has closed a breaker that opens again begins with the first backoff."""


class CircuitBreaker:
    """The breaker of one worker."""

    def __init__(self, limits: BreakerLimits) -> None:
        self.state: State = "closed"
        self.reason = ""
        """Why it opened last; empty while it is closed."""
        self._limits = limits
        self._blamed_at: list[float] = []
        self._backoff_s = 0.0
        self._retry_at = 0.0
        self._closed_at = 0.0
        self._num_left = 0

    def blame(self, reason: str, now: float, weight: int = 1) -> bool:
        """Count a failure that was the worker's as `weight` of them; True when the breaker opens with it."""
        if self.state == "open":
            return False
        self._blamed_at = [at for at in self._blamed_at if now - at < self._limits.window_s] + [now] * weight
        if self.state == "closed" and len(self._blamed_at) < self._limits.num_blames:
            return False
        self._open(reason, now)
        return True

    def may_try(self, now: float) -> bool:
        """Whether the worker may be asked for something: always, unless the breaker is open and waits."""
        return self.state != "open" or now >= self._retry_at

    def begin_trial(self) -> None:
        """Half-open an open breaker."""
        if self.state == "open":
            self.state, self._num_left = "half_open", self._limits.num_trials

    def succeed(self, now: float) -> bool:
        """Note a computation without a failure; True when the breaker closes with it."""
        if self.state != "half_open":
            return False
        self._num_left -= 1
        if self._num_left > 0:
            return False
        self.state, self.reason, self._closed_at = "closed", "", now
        return True

    def _open(self, reason: str, now: float) -> None:
        limits = self._limits
        is_forgotten = self.state == "closed" and now - self._closed_at >= limits.forget_s
        before_s = 0.0 if is_forgotten else self._backoff_s
        self._backoff_s = min(max(limits.backoff_s, 2 * before_s), limits.max_backoff_s)
        self.state, self.reason, self._retry_at = "open", reason, now + self._backoff_s
        self._blamed_at = []
