"""When a request is made of a second worker as well, since the first is late. Pure: seconds are passed in.

    seconds of the last requests    0.18 0.21 … 0.29 │ 0.31 … 1.4     95 of 100 took less than 0.31 s: it is late then
    allowance                       16 ─ 1 a hedge + 0.05 a request, 16 at most

So hedges are at most 16, and beyond that 5 % of the requests, however slow all workers become together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_NUM_KEPT = 256
_NUM_ENOUGH = 20  # requests without which a quantile says little
_LEARN_EVERY = 16


@dataclass(frozen=True, slots=True)
class HedgeLimits:
    """When, and how often. Times in seconds."""

    quantile: float = 0.95
    share: float = 0.05
    """Hedges for each request, in the long run."""
    burst: int = 16
    """Hedges at once, after a time without any."""
    least_s: float = 0.1
    """For which anybody may be late."""
    first_s: float = 1.0
    """As long as too few requests are known."""


@dataclass(slots=True)
class Hedging:
    """What requests of one kind took lately, and what their hedges may still cost."""

    limits: HedgeLimits = HedgeLimits()
    num_requests: int = 0
    num_hedges: int = 0
    num_won: int = 0
    """Hedges that were answered before the first worker's answer came."""
    late_after_s: float = field(init=False)
    """After how long a request is late."""
    _allowance: float = field(init=False)
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_KEPT))

    def __post_init__(self) -> None:
        self.late_after_s, self._allowance = self.limits.first_s, float(self.limits.burst)

    def note_request(self, took_s: float) -> None:
        """Take in how long a request took, from the first question to the first answer, hedged or not."""
        self.num_requests += 1
        self._allowance = min(self.limits.burst, self._allowance + self.limits.share)
        self._seconds.append(took_s)
        num_kept = len(self._seconds)
        if num_kept >= _NUM_ENOUGH and self.num_requests % _LEARN_EVERY == 0:
            quantile_s = sorted(self._seconds)[int(self.limits.quantile * num_kept)]
            self.late_after_s = max(self.limits.least_s, quantile_s)

    def spend(self, *, is_free: bool = False) -> bool:
        """Whether a late request may be hedged, which this counts; `is_free`: the first worker computes nothing."""
        if not is_free:
            if self._allowance < 1:
                return False
            self._allowance -= 1
        self.num_hedges += 1
        return True
