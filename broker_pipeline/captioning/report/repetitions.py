"""What share of texts stood there before, in bounded memory."""

from __future__ import annotations

from hashlib import blake2b

_HASH_BITS = 64


class Repetitions:
    """Looks at all texts, until there are too many different ones: then at those whose hash is in the lower half.

    And at every fourth and every eighth of them, and so on. What is looked at is counted in full, and whether a text is
    does not depend on how often it comes: so its share of repetitions is the whole's, but for chance.
    """

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._bound = 1 << _HASH_BITS
        self._counts: dict[int, int] = {}

    def add(self, text: str) -> None:
        """Take note of a text."""
        key = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BITS // 8).digest())
        if key >= self._bound:
            return
        self._counts[key] = self._counts.get(key, 0) + 1
        while len(self._counts) > self._capacity:
            self._bound //= 2
            self._counts = {key: num for key, num in self._counts.items() if key < self._bound}

    @property
    def is_exact(self) -> bool:
        """Whether every text was looked at."""
        return self._bound == 1 << _HASH_BITS

    @property
    def share(self) -> float:
        """Return the share of texts that had come before; 0 where there are none."""
        num = sum(self._counts.values())
        return 1 - len(self._counts) / num if num else 0.0
