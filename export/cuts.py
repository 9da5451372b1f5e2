"""Where to cut a model so that its stages hold about the same number of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """A stage: decoder blocks `[start, stop)` and the bytes of weights that it holds."""

    start: int
    stop: int
    size_bytes: int


def balanced_cuts(
    block_bytes: Sequence[int], num_stages: int, *, embed_bytes: int = 0, head_bytes: int = 0
) -> list[Cut]:
    """Cut blocks into `num_stages` runs whose largest is as small as can be.

    The first stage holds the embedding as well, the last one the head. Every stage gets at least one block.

    Raises:
        ValueError: there are fewer blocks than stages, or no stages.
    """
    num_blocks = len(block_bytes)
    if not 1 <= num_stages <= num_blocks:
        raise ValueError(f"{num_blocks} blocks cannot be cut into {num_stages} stages")
    prefix = [embed_bytes]
    for size in block_bytes:
        prefix.append(prefix[-1] + size)
    prefix[0], prefix[-1] = 0, prefix[-1] + head_bytes
    # best[stop]: the smallest possible largest stage when the first `stop` blocks fill the stages so far
    best = [float("inf")] * (num_blocks + 1)
    best[0] = 0
    starts: list[list[int]] = []
    for _ in range(num_stages):
        candidates = [
            min(
                ((max(best[start], prefix[stop] - prefix[start]), start) for start in range(stop)),
                default=(float("inf"), 0),
            )
            for stop in range(num_blocks + 1)
        ]
        best = [largest for largest, _ in candidates]
        starts.append([start for _, start in candidates])
    return _walk_back(starts, prefix)


def _walk_back(starts: list[list[int]], prefix: list[int]) -> list[Cut]:
    cuts: list[Cut] = []
    stop = len(prefix) - 1
    for start_of in reversed(starts):
        start = start_of[stop]
        cuts.append(Cut(start, stop, prefix[stop] - prefix[start]))
        stop = start
    return cuts[::-1]
