"""Encoded pictures by the hash of their bytes, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import EncodedRows


@dataclass(frozen=True, slots=True)
class EncodedVisual:
    """The visual rows of one picture or video, where the tower's lane leaves them."""

    grid: PatchGrid
    rows: EncodedRows

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(tensor.nbytes for tensor in (self.rows.embeds, *self.rows.levels))


class VisionCache:
    """At most `max_bytes` of rows. A captioning queue often asks for one picture with several prompts, or again."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, EncodedVisual] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def get(self, key: str) -> EncodedVisual | None:
        """Return the rows, which count as just used then; None if they are not here."""
        found = self._entries.get(key)
        if found is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: str, encoded: EncodedVisual) -> None:
        """Keep rows, and drop those used longest ago until all fit; rows larger than the cache are not kept."""
        if key in self._entries:
            self.num_bytes -= self._entries.pop(key).num_bytes
        if encoded.num_bytes > self._max_bytes:
            return
        self._entries[key] = encoded
        self.num_bytes += encoded.num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1].num_bytes
