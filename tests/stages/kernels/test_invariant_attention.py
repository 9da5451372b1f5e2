"""Attention for `--deterministic`: right, and with the same bits however a prompt is cut and whatever is beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.cached_heads import CachedHeads, HeadCodes
from stages.compute.fused.step_inputs import DeviceInputs, Layout, TileRule, step_block
from stages.kernels.invariant_attention import attend_invariant_tiles, attend_invariant_tokens, queries_per_tile
from stages.qwen3_vl.attention import AttentionPlan, AttentionSpan, EagerAttention

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's products of bf16 are wrong
SIZES = [(4, 2, 32), (8, 1, 64), (32, 8, 128), (6, 2, 32)]


def _attended(
    q: Tensor, keys: CachedHeads, values: CachedHeads, spans: list[AttentionSpan], *, one_by_one: bool
) -> Tensor:
    kv_heads = keys.shape[1]
    if one_by_one:
        spans = [
            AttentionSpan(span.query_start + index, 1, span.key_start, span.num_keys - span.num_queries + index + 1)
            for span in spans
            for index in range(span.num_queries)
        ]
    layout = Layout.of(spans, TileRule(queries_per_tile(q.shape[1], kv_heads), is_aligned=True))
    sizes = layout.sizes()
    block = step_block(layout, sizes, torch.zeros(3, layout.num_tokens, dtype=torch.int32))
    inputs = DeviceInputs.over(torch.from_numpy(block).to(q.device), sizes)
    out = torch.full_like(q, float("nan"))
    if layout.chunks:
        tiles = inputs.chunk_offsets, inputs.chunk_starts, inputs.chunk_lengths
        attend_invariant_tiles(q, keys, values, tiles, out=out)
    attend_invariant_tokens(q, keys, values, inputs.decode_tokens, inputs.starts, inputs.lengths, out=out)
    return out


def _tensors(sizes: tuple[int, int, int], num_queries: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, d = sizes
    chance = torch.Generator().manual_seed(heads)
    q, keys, values = (
        torch.randn(num, of, d, generator=chance).to(device, HALF)
        for num, of in ((num_queries, heads), (1400, kv_heads), (1400, kv_heads))
    )
    return q, keys, values


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_causal_attention(device: torch.device, sizes: tuple[int, int, int]) -> None:
    spans = [AttentionSpan(0, 40, 3, 290), AttentionSpan(40, 17, 500, 17), AttentionSpan(57, 1, 700, 600)]
    q, keys, values = _tensors(sizes, 58, device)
    found = _attended(q, keys, values, spans, one_by_one=False)
    want = EagerAttention().attend_cached(q.float(), keys.float(), values.float(), AttentionPlan(spans, device))
    torch.testing.assert_close(found.float(), want, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_a_query_is_the_same_in_a_prompt_and_as_a_decode_token(
    device: torch.device, sizes: tuple[int, int, int]
) -> None:
    """Nearly: the interpreter adds up in numpy, in an order that depends on shapes. A GPU is held to the bits below."""
    spans = [AttentionSpan(0, 20, 3, 270)]
    q, keys, values = _tensors(sizes, 20, device)
    whole, single = (_attended(q, keys, values, spans, one_by_one=each) for each in (False, True))
    torch.testing.assert_close(whole, single, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_codes_attend_as_their_values(device: torch.device, sizes: tuple[int, int, int], one_by_one: bool) -> None:
    """Of any size: a slot's values are up to a hundred thousand times those of another."""
    dtype = HALF if device.type == "cuda" else torch.float32  # fp16 has no room for the scales
    q, keys, values = (each.to(dtype) for each in _tensors(sizes, 58, device))
    growing = torch.logspace(-3, 2, len(keys), device=device, dtype=dtype)[:, None, None]
    codes = [HeadCodes.of(heads * growing) for heads in (keys, values)]
    spans = [AttentionSpan(0, 40, 3, 290), AttentionSpan(40, 17, 500, 17), AttentionSpan(57, 1, 700, 600)]
    found = _attended(q, codes[0], codes[1], spans, one_by_one=one_by_one)
    coded = [heads[: len(keys)].float() for heads in codes]
    want = EagerAttention().attend_cached(q.float(), coded[0], coded[1], AttentionPlan(spans, device))
    off = (found.float() - want).norm(dim=-1) / want.norm(dim=-1)
    assert off.max() < (0.01 if dtype == HALF else 1e-5)


def test_nobody_s_tokens_and_tiles_are_left_alone(device: torch.device) -> None:
    q, keys, values = _tensors((4, 2, 32), 4, device)
    out = torch.full_like(q, float("nan"))
    places = [torch.tensor(each, dtype=torch.int32, device=device) for each in ([1, 2, -1], [5, 9, 0], [7, 0, 0])]
    attend_invariant_tokens(q, keys, values, *places, out=out)
    tiles = [torch.tensor(each, dtype=torch.int32, device=device) for each in ([0, 0, 0], [0, 0, 0], [0, 0])]
    attend_invariant_tiles(q, keys, values, (tiles[0], tiles[1], tiles[2]), out=out)
    assert not out[2].any()
    assert not out[1].isnan().any()
    assert out[[0, 3]].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("in_fp8", [False, True])
@pytest.mark.parametrize("sizes", [*SIZES, (64, 4, 128), (16, 8, 128)], ids=str)
def test_a_query_has_the_same_bits_wherever_it_stands(sizes: tuple[int, int, int], in_fp8: bool) -> None:
    q, *both = _tensors(sizes, 1100, torch.device("cuda"))
    keys, values = (HeadCodes.of(heads) if in_fp8 else heads for heads in both)
    spans = [AttentionSpan(0, 1100, 5, 1200)]
    whole = _attended(q, keys, values, spans, one_by_one=False)
    assert torch.equal(_attended(q, keys, values, spans, one_by_one=True), whole)
    few = [AttentionSpan(index, 1, 5, 101 + index) for index in range(1100)][40:90]  # parts side by side
    alone = _attended(
        q[40:90].contiguous(), keys, values, [s._replace(query_start=i) for i, s in enumerate(few)], one_by_one=False
    )
    assert torch.equal(alone, whole[40:90])
    cut = [AttentionSpan(0, 7, 5, 107), AttentionSpan(7, 500, 5, 607), AttentionSpan(507, 593, 5, 1200)]
    assert torch.equal(_attended(q, keys, values, cut, one_by_one=False), whole)
