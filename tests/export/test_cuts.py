from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.cuts import balanced_cuts


def stage_sizes(blocks, boundaries, embed, head):
    edges = [0, *boundaries, len(blocks)]
    sizes = [sum(blocks[a:b]) for a, b in pairwise(edges)]
    sizes[0] += embed
    sizes[-1] += head
    return sizes


@given(
    blocks=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    num_stages=st.integers(1, 8),
    embed=st.integers(0, 60),
    head=st.integers(0, 60),
)
def test_no_other_cut_has_a_smaller_largest_stage(blocks, num_stages, embed, head):
    num_stages = min(num_stages, len(blocks))
    cuts = balanced_cuts(blocks, num_stages, embed_bytes=embed, head_bytes=head)
    assert len(cuts) == num_stages
    assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])]
    assert cuts[-1].stop == len(blocks)
    assert all(cut.start < cut.stop for cut in cuts)
    assert [cut.size_bytes for cut in cuts] == stage_sizes(blocks, [c.start for c in cuts[1:]], embed, head)
    best = min(
        max(stage_sizes(blocks, boundaries, embed, head))
        for boundaries in combinations(range(1, len(blocks)), num_stages - 1)
    )
    assert max(cut.size_bytes for cut in cuts) == best


def test_every_stage_needs_a_block():
    with pytest.raises(ValueError, match="2 blocks cannot be cut into 3 stages"):
        balanced_cuts([1, 1], 3)
