"""How much of something happened per second, lately. Pure: the time is passed in."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0


class Rate:
    """The rate of a counter that only rises, over the last `window_s` seconds."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, float]] = deque()

    def observe(self, total: float, now: float) -> float:
        """Take the counter's value and return the rate; 0 until there are two values, or when it starts again."""
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, total))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window_s:
            self._samples.popleft()
        (then, before), elapsed_s = self._samples[0], now - self._samples[0][0]
        return (total - before) / elapsed_s if elapsed_s > 0 and then < now else 0.0
