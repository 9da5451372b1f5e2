"""The block of integers that tells a GPU about a microbatch."""

from __future__ import annotations

import numpy as np
import torch

from stages.compute.fused.step_inputs import DeviceInputs, Layout, StepSizes, TileRule, step_block
from stages.qwen3_vl.attention import AttentionSpan

CHUNKS = [AttentionSpan(0, 3, 10, 5), AttentionSpan(3, 2, 40, 2)]
ROWS = [AttentionSpan(5, 1, 60, 7), AttentionSpan(6, 1, 80, 1)]
POSITIONS = torch.arange(21, dtype=torch.int32).view(3, 7)
TOKENS = torch.arange(100, 107, dtype=torch.int32)


def told(layout: Layout, sizes: StepSizes | None = None, **more) -> DeviceInputs:
    sizes = sizes or layout.sizes()
    n = layout.num_tokens
    block = step_block(layout, sizes, POSITIONS[:, :n], TOKENS[:n], **more)
    return DeviceInputs.over(torch.from_numpy(block), sizes)


def test_chunks_and_rows_are_told_apart():
    layout = Layout.of(CHUNKS + ROWS)
    inputs = told(layout)
    assert [axis.tolist() for axis in inputs.positions] == POSITIONS.tolist()
    assert inputs.token_ids.tolist() == TOKENS.tolist()
    assert inputs.slots.tolist() == [12, 13, 14, 40, 41, 66, 80]
    assert inputs.chunk_offsets.tolist() == [0, 3, 5]
    assert inputs.chunk_starts.tolist()[:2] == [10, 40]
    assert inputs.chunk_lengths.tolist() == [5, 2]
    assert (inputs.decode_tokens.tolist(), inputs.starts.tolist(), inputs.lengths.tolist()) == (
        [5, 6],
        [60, 80],
        [7, 1],
    )
    assert (layout.num_chunk_tokens, layout.max_chunk_keys) == (5, 5)


def test_a_single_token_before_a_chunk_counts_as_a_chunk():
    layout = Layout.of([AttentionSpan(0, 1, 60, 7), AttentionSpan(1, 3, 10, 3), AttentionSpan(4, 1, 80, 1)])
    inputs = told(layout)
    assert inputs.chunk_offsets.tolist() == [0, 1, 4]
    assert inputs.decode_tokens.tolist() == [4]


def test_aligned_tiles_are_counted_from_the_first_token_of_a_session():
    layout = Layout.of([AttentionSpan(0, 9, 10, 12), AttentionSpan(9, 4, 40, 4)], TileRule(4, is_aligned=True))
    assert [(tile.query_start, tile.num_queries, tile.num_keys) for tile in layout.chunks] == [
        (0, 1, 4),
        (1, 4, 8),
        (5, 4, 12),
        (9, 4, 4),
    ]
    assert {tile.key_start for tile in layout.chunks[:3]} == {10}


def test_what_is_beyond_a_step_stores_in_the_spare_slot_and_looks_at_nothing():
    layout = Layout.of([AttentionSpan(0, 1, 60, 7), AttentionSpan(1, 1, 80, 1)])
    inputs = told(layout, StepSizes(4, 4), spare_slot=99)
    assert inputs.slots.tolist() == [66, 80, 99, 99]
    assert inputs.lengths.tolist() == [7, 1, 0, 0]
    assert inputs.decode_tokens.tolist() == [0, 1, 2, 3]
    assert inputs.token_ids.tolist() == [100, 101, 0, 0]


def test_what_is_beyond_a_mixed_pass_is_nobodys():
    layout = Layout.of(CHUNKS + ROWS)
    sizes = StepSizes(num_tokens=8, num_decode_tokens=5, num_chunks=4, num_visual=8, num_wanted=3)
    inputs = told(layout, sizes, spare_slot=99, visual=np.array([1, 2], np.int32), wanted=(2, 6))
    assert inputs.chunk_offsets.tolist() == [0, 3, 5, 5, 5]
    assert inputs.chunk_lengths.tolist() == [5, 2, 0, 0]
    assert inputs.decode_tokens.tolist() == [5, 6, 7, -1, -1]
    assert inputs.lengths.tolist() == [7, 1, 0, 0, 0]
    assert inputs.visual.tolist() == [1, 2, -1, -1, -1, -1, -1, -1]
    assert inputs.wanted.tolist() == [2, 6, 0]
    assert told(layout, sizes).visual.tolist() == [-1] * 8


def test_every_section_begins_at_sixteen_bytes():
    layout = Layout.of(CHUNKS + ROWS)
    sizes = layout.sizes()
    assert all(place.start % 4 == 0 for place in sizes.sections().values())
    assert len(step_block(layout, sizes, POSITIONS, TOKENS)) == sizes.num_ints
