"""How often each whole number came, in bounded memory, and the bars that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

_LARGEST = 10_000
_MAX_BARS = 20
_MIN_BARS = 8
"""A single bar as wide as the page would look like a mistake."""
_MOST, _NEARLY_MOST = 0.99, 0.95
"""Bars end at the first, or at twice the second: the last one has the rest, so that a few long captions do not squeeze
all others."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The numbers from `low` to `high` and how often they came; `high` is None where all larger ones count as well."""

    low: int
    high: int | None
    num: int

    @property
    def label(self) -> str:
        """What numbers it has, in words."""
        if self.high is None:
            return f"{self.low:,} or more"
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,}–{self.high:,}"  # noqa: RUF001 - a range

    @property
    def tick(self) -> str:
        """The shortest that says where it is."""
        return f"{self.low:,}+" if self.high is None else f"{self.low:,}"


class Histogram:
    """Counts numbers from 0 on; those beyond 10,000 count as that."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.num = 0

    def add(self, number: int) -> None:
        """Count a number."""
        self._counts[min(number, _LARGEST)] += 1
        self.num += 1

    def quantile(self, share: float) -> int:
        """Return the number that `share` of all do not exceed; 0 where there are none."""
        num_below = 0
        for number in sorted(self._counts):
            num_below += self._counts[number]
            if num_below >= share * self.num:
                return number
        return 0

    def bars(self) -> list[Bar]:
        """Return bars of one width, next to each other."""
        if not self.num:
            return []
        low, high = min(self._counts), min(self.quantile(_MOST), 2 * self.quantile(_NEARLY_MOST))
        step = next(step for step in _round_steps() if high // step - low // step < _MAX_BARS)
        start = low // step * step
        num_bars = max(_MIN_BARS, (high - start) // step + 1)
        counts = Counter[int]()
        for number, num in self._counts.items():
            counts[min((number - start) // step, num_bars)] += num
        bars = [Bar(start + i * step, start + (i + 1) * step - 1, counts[i]) for i in range(num_bars)]
        return [*bars, Bar(start + num_bars * step, None, counts[num_bars])] if counts[num_bars] else bars


def _round_steps() -> Iterator[int]:
    return (factor * 10**power for power in count() for factor in (1, 2, 5))
