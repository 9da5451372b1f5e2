"""Both kernels against the plain definition, on scattered regions of a flat cache."""

from __future__ import annotations

import pytest
import torch

from stages.qwen3_vl.attention import AttentionPlan, AttentionSpan, attention_named

HEADS, KV_HEADS, D = 6, 2, 8
CPU = torch.device("cpu")


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: AttentionSpan) -> torch.Tensor:
    """Query by query and head by head."""
    out = torch.empty(span.num_queries, HEADS, D)
    for i in range(span.num_queries):
        seen = slice(span.key_start, span.key_start + span.num_keys - span.num_queries + i + 1)
        for head in range(HEADS):
            kv = head // (HEADS // KV_HEADS)
            scores = keys[seen, kv] @ q[span.query_start + i, head] / D**0.5
            out[i, head] = scores.softmax(0) @ values[seen, kv]
    return out


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_ragged_segments_see_their_own_regions_causally(name):
    spans = [AttentionSpan(0, 4, 20, 4), AttentionSpan(4, 1, 3, 9), AttentionSpan(5, 3, 40, 11)]
    q, keys, values = draw(8, HEADS, D, seed=0), draw(64, KV_HEADS, D, seed=1), draw(64, KV_HEADS, D, seed=2)
    taken = torch.zeros(64, dtype=torch.bool)
    for span in spans:
        taken[span.keys] = True
    keys[~taken] = values[~taken] = float("nan")  # rows of nobody must not matter
    found = attention_named(name).attend_cached(q, keys, values, AttentionPlan(spans, CPU))
    for span in spans:
        torch.testing.assert_close(found[span.queries], plain(q, keys, values, span), rtol=1e-5, atol=1e-5)


def test_slots_are_the_last_rows_of_each_segment():
    plan = AttentionPlan([AttentionSpan(0, 2, 10, 5), AttentionSpan(2, 1, 30, 1)], CPU)
    assert plan.slots.tolist() == [13, 14, 30]


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_frames_attend_within_themselves(name):
    lengths = [4, 4, 6, 4]
    q, k, v = (draw(18, HEADS, D, seed=seed) for seed in range(3))
    found = attention_named(name).attend_frames(q, k, v, lengths)
    for start, length in zip((0, 4, 8, 14), lengths, strict=True):
        rows = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[rows]) / D**0.5
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[rows])
        torch.testing.assert_close(found[rows], expected, rtol=1e-5, atol=1e-5)
