"""What came most often among any number of different things, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class Frequent(Generic[Thing]):
    """Counts by Misra and Gries: exact as long as there are at most `2 * capacity` different things.

    From there on a count may be too small by `most_missed`, which is no more than one in `capacity` of all.
    """

    def __init__(self, capacity: int = 2048) -> None:
        self._capacity = capacity
        self._counts: Counter[Thing] = Counter()
        self.most_missed = 0

    def add(self, thing: Thing) -> None:
        """Count a thing."""
        self._counts[thing] += 1
        if len(self._counts) > 2 * self._capacity:
            self._forget()

    def top(self, num: int) -> list[tuple[Thing, int]]:
        """Return the most frequent ones and their counts."""
        return self._counts.most_common(num)

    def _forget(self) -> None:
        """Take from all what the first one beyond the capacity has, so that it and all rarer ones are gone."""
        too_few = sorted(self._counts.values(), reverse=True)[self._capacity]
        self._counts = Counter({thing: num - too_few for thing, num in self._counts.items() if num > too_few})
        self.most_missed += too_few
