"""How fast things finish, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0


class RateMeter:
    """Counts events in a sliding window of `WINDOW_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque()
        self._started = clock()

    def count(self) -> None:
        """Count one more that has finished, now."""
        self._times.append(self._clock())

    def per_second(self) -> float | None:
        """Return the rate; None while too little is known."""
        now = self._clock()
        while self._times and self._times[0] < now - WINDOW_S:
            self._times.popleft()
        observed_s = min(now - self._started, WINDOW_S)
        if len(self._times) < 2 or observed_s <= 0:
            return None
        return len(self._times) / observed_s

    def remaining_s(self, num_remaining: int) -> float | None:
        """Return the seconds that `num_remaining` more will take at this rate."""
        rate = self.per_second()
        return None if rate is None else num_remaining / rate


def clock_text(seconds: float | None) -> str:
    """Return seconds as people read them: 4:05, 1:02:03; --:-- where unknown."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
