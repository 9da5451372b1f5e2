"""Rotary positions of the vision tower, turned within the packed projections of queries, keys and values.

qkv   [ q of head 0 … 15 | k of head 0 … 15 | v of head 0 … 15 ]     one row a patch, `head_dim` channels a head
        └──── turned where they lie ────┘

A bias that the projections have not had yet is added to all three.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _with_bias(x, bias_ptr, mask, dtype):
    """Add a bias, rounded as a product's is."""
    return (x + tl.load(bias_ptr, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)


@triton.jit
def _rotate_kernel(
    qkv_ptr,
    bias_ptr,
    cos_ptr,
    sin_ptr,
    ROW: tl.constexpr,
    NUM_TURNED: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BIASED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads, channels = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    exists = channels < HALF
    cos = tl.load(cos_ptr + row * HALF + channels, mask=exists, other=0.0)
    sin = tl.load(sin_ptr + row * HALF + channels, mask=exists, other=0.0)
    mask = exists & (heads < NUM_TURNED)
    places = heads * 2 * HALF + channels
    first_ptr = qkv_ptr + row * ROW + places
    first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
    dtype = qkv_ptr.dtype.element_ty
    if BIASED:
        first = _with_bias(first, bias_ptr + places, mask, dtype)
        second = _with_bias(second, bias_ptr + places + HALF, mask, dtype)
        are_values = exists & (heads < NUM_TURNED // 2)
        for half in tl.static_range(2):
            place = NUM_TURNED * 2 * HALF + half * HALF + places
            value = tl.load(qkv_ptr + row * ROW + place, mask=are_values, other=0.0).to(tl.float32)
            value = _with_bias(value, bias_ptr + place, are_values, dtype)
            tl.store(qkv_ptr + row * ROW + place, value.to(dtype), mask=are_values)
    tl.store(first_ptr, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(first_ptr + HALF, (second * cos + first * sin).to(dtype), mask=mask)


def rotate_packed(qkv: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None = None) -> None:
    """Turn queries and keys of `qkv` `[N, 3, heads, head_dim]`, contiguous, in place.

    cos and sin are fp32 `[N, head_dim / 2]`. Products and sums are rounded one by one, as in plain torch. A `bias`
    `[3 * heads * head_dim]` is added to all before.
    """
    num_rows, _, num_heads, head_dim = qkv.shape
    half = head_dim // 2
    assert qkv.is_contiguous(), "rows are found by their number"
    assert cos.is_contiguous(), "rows are found by their number"
    assert sin.is_contiguous(), "rows are found by their number"
    if num_rows:
        _rotate_kernel[(num_rows,)](
            qkv,
            qkv if bias is None else bias,
            cos,
            sin,
            ROW=3 * num_heads * head_dim,
            NUM_TURNED=2 * num_heads,
            HALF=half,
            HEADS_BLOCK=triton.next_power_of_2(2 * num_heads),
            HALF_BLOCK=triton.next_power_of_2(half),
            BIASED=bias is not None,
            num_warps=4,
            enable_fp_fusion=False,
        )
