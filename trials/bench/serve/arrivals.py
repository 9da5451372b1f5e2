"""When requests arrive: independently of each other, as from many users, or all at once."""

from __future__ import annotations

import random
from collections.abc import Iterator


def arrivals(rate: float | None, seed: int) -> Iterator[float]:
    """Yield the seconds after the start at which each request is due: a Poisson process of `rate` per second.

    Without a rate all are due at once, and what runs at the same time is bounded by the caller alone.
    """
    chance = random.Random(seed)
    due_s = 0.0
    while True:
        yield due_s
        due_s += chance.expovariate(rate) if rate else 0.0
