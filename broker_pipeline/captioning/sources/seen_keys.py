"""The keys that were met, in memory that does not grow with them."""

from __future__ import annotations

import hashlib
import struct

_NUM_BYTES = 1 << 24
_POSITIONS = struct.Struct("<4I")


class SeenKeys:
    """A Bloom filter: it knows every key that was met, and takes about one new one in 200 for met after 10 million.

    Its answers are the same in every run.
    """

    def __init__(self) -> None:
        self._bits = bytearray(_NUM_BYTES)

    def add(self, key: str) -> bool:
        """Take a key, and return whether it is surely new."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=_POSITIONS.size).digest()
        is_new = False
        for position in _POSITIONS.unpack(digest):
            index, bit = (position >> 3) % _NUM_BYTES, 1 << (position & 7)
            is_new |= not self._bits[index] & bit
            self._bits[index] |= bit
        return is_new
