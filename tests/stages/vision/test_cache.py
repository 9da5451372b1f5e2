from __future__ import annotations

import torch

from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import TowerOutput
from stages.vision.cache import EncodedVisual, VisionCache


def encoded(num_rows: int) -> EncodedVisual:
    rows = TowerOutput(torch.zeros(2, num_rows, 4))
    return EncodedVisual(PatchGrid(1, 2, 2 * num_rows), rows)


def test_rows_are_kept_within_the_bound_and_the_least_used_go_first() -> None:
    cache = VisionCache(max_bytes=3 * 32)
    for key in "abc":
        cache.put(key, encoded(1))
    assert cache.get("a") is not None
    cache.put("d", encoded(1))
    assert cache.get("b") is None
    assert [cache.get(key) is not None for key in "acd"] == [True, True, True]
    assert (cache.num_bytes, cache.num_hits, cache.num_misses) == (96, 4, 1)


def test_a_picture_larger_than_the_cache_is_not_kept_and_pushes_nobody_out() -> None:
    cache = VisionCache(max_bytes=64)
    cache.put("a", encoded(1))
    cache.put("big", encoded(3))
    assert cache.get("big") is None
    assert cache.get("a") is not None


def test_the_same_picture_again_counts_once() -> None:
    cache = VisionCache(max_bytes=64)
    cache.put("a", encoded(1))
    cache.put("a", encoded(2))
    assert cache.num_bytes == 64
