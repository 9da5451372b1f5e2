"""Attention by tiles has the bits of attention over what was cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.compute.fused.step_inputs import Layout
from stages.kernels.flash_attention import QUERIES_PER_TILE, attend_tiles
from stages.qwen3_vl.attention import AttentionSpan
from stages.qwen3_vl.vision_places import frame_tiles

LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=8)


@given(lengths=LENGTHS, num_beyond=st.integers(0, 5))
def test_every_patch_sees_its_frame_and_nothing_else(lengths: list[int], num_beyond: int) -> None:
    num_used = sum(-(-length // QUERIES_PER_TILE) for length in lengths)
    offsets, key_starts, key_lengths = frame_tiles(lengths, num_used + num_beyond)
    assert np.array_equal(frame_tiles(lengths), [each[: num_used + 1] for each in (offsets, key_starts, key_lengths)])
    counts = np.diff(offsets)
    assert counts[:num_used].min() >= 1
    assert counts.max() <= QUERIES_PER_TILE
    assert counts[num_used:].sum() == 0
    seen = [
        (start, num) for start, num, count in zip(key_starts, key_lengths, counts, strict=False) for _ in range(count)
    ]
    starts = np.cumsum([0, *lengths])
    assert seen == [(starts[frame], length) for frame, length in enumerate(lengths) for _ in range(length)]


@given(chunks=st.lists(st.tuples(st.integers(2, 700), st.integers(0, 300)), min_size=1, max_size=6))
def test_every_token_of_a_chunk_sees_what_is_before_it_and_itself(chunks: list[tuple[int, int]]) -> None:
    spans, first = [], 0
    for count, before in chunks:
        spans.append(AttentionSpan(first, count, 1000 * len(spans), before + count))
        first += count
    seen = {}
    for tile in Layout.of(spans).chunks:
        assert 1 <= tile.num_queries <= QUERIES_PER_TILE
        for index in range(tile.num_queries):
            seen[tile.query_start + index] = tile.key_start, tile.num_keys - tile.num_queries + index + 1
    assert seen == {
        span.query_start + index: (span.key_start, span.num_keys - span.num_queries + index + 1)
        for span in spans
        for index in range(span.num_queries)
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lengths", [[784] * 3, [1, 128, 129, 4, 700], [3600, 60]], ids=str)
def test_tiles_of_frames_give_the_bits_of_whole_frames(lengths: list[int]) -> None:
    qkv = torch.randn(sum(lengths) + 40, 3, 16, 72, device="cuda", dtype=torch.bfloat16)
    q, k, v = qkv.unbind(1)
    offsets, key_starts, key_lengths = torch.from_numpy(frame_tiles(lengths, 100)).cuda()
    found = attend_tiles(q, k, v, (offsets, key_starts, key_lengths[:-1]), max_keys=len(q), is_causal=False)
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda")
    expected = torch.ops.aten._flash_attention_forward(
        q, k, v, starts, starts, max(lengths), max(lengths), 0.0, False, False, scale=72**-0.5
    )[0]
    assert torch.equal(found[: sum(lengths)], expected[: sum(lengths)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tiles_of_chunks_give_the_bits_of_whole_chunks() -> None:
    spans = [AttentionSpan(0, 300, 0, 300), AttentionSpan(300, 129, 1000, 640), AttentionSpan(429, 2, 400, 130)]
    keys, values = (torch.randn(2000, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(431, 32, 128, device="cuda", dtype=torch.bfloat16)

    def attended(cut: list[AttentionSpan], max_queries: int) -> torch.Tensor:
        offsets = torch.tensor([*(span.query_start for span in cut), 431], dtype=torch.int32, device="cuda")
        starts = torch.tensor([*(span.key_start for span in cut), 0], dtype=torch.int32, device="cuda")
        lengths = torch.tensor([span.num_keys for span in cut], dtype=torch.int32, device="cuda")
        if max_queries == QUERIES_PER_TILE:
            return attend_tiles(q, keys, values, (offsets, starts, lengths), max_keys=4096, is_causal=True)
        return torch.ops.aten._flash_attention_forward(
            q, keys, values, offsets, starts, max_queries, 640, 0.0, True, False, scale=128**-0.5, seqused_k=lengths
        )[0]

    assert torch.equal(attended(list(Layout.of(spans).chunks), QUERIES_PER_TILE), attended(spans, 300))
