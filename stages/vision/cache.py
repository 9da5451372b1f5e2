"""Encoded pictures by the hash of their bytes, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import TowerOutput


@dataclass(frozen=True, slots=True)
class EncodedVisual:
    """One picture or video as the tower encoded it; `output` is where the tower's lane left it."""

    grid: PatchGrid
    output: TowerOutput
    timestamps: tuple[float, ...] = ()
    """Of a video: the second of each temporal group."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all its visual rows."""
        return self.output.rows.nbytes


class VisionCache:
    """At most `max_bytes` of visual rows. A captioning queue often asks for a picture again, with another prompt."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, EncodedVisual] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def get(self, key: str) -> EncodedVisual | None:
        """Return a picture, which counts as just used then; None if it is not here. Either is counted."""
        found = self.peek(key)
        if found is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(key)
        return found

    def peek(self, key: str) -> EncodedVisual | None:
        """Return a picture, if it is here, and count nothing."""
        return self._entries.get(key)

    def put(self, key: str, encoded: EncodedVisual) -> None:
        """Keep a picture, and drop those used longest ago until all fit; one larger than the cache is not kept."""
        if key in self._entries:
            self.num_bytes -= self._entries.pop(key).num_bytes
        if encoded.num_bytes > self._max_bytes:
            return
        self._entries[key] = encoded
        self.num_bytes += encoded.num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1].num_bytes
