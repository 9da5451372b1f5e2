"""Rotary positions of the vision tower, turned within the packed projections of queries, keys and values.

qkv   [ q of head 0 … 15 | k of head 0 … 15 | v of head 0 … 15 ]     one row a patch, `head_dim` channels a head
        └──── turned where they lie ────┘
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    ROW: tl.constexpr,
    NUM_TURNED: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    heads, channels = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    exists = channels < HALF
    cos = tl.load(cos_ptr + row * HALF + channels, mask=exists, other=0.0)
    sin = tl.load(sin_ptr + row * HALF + channels, mask=exists, other=0.0)
    mask = exists & (heads < NUM_TURNED)
    first_ptr = qkv_ptr + row * ROW + heads * 2 * HALF + channels
    first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
    dtype = qkv_ptr.dtype.element_ty
    tl.store(first_ptr, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(first_ptr + HALF, (second * cos + first * sin).to(dtype), mask=mask)


def rotate_packed(qkv: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn queries and keys of `qkv` `[N, 3, heads, head_dim]`, contiguous, in place.

    cos and sin are fp32 `[N, head_dim / 2]`. Products and sums are rounded one by one, as in plain torch.
    """
    num_rows, _, num_heads, head_dim = qkv.shape
    half = head_dim // 2
    assert qkv.is_contiguous(), "rows are found by their number"
    assert cos.is_contiguous(), "rows are found by their number"
    assert sin.is_contiguous(), "rows are found by their number"
    if num_rows:
        _rotate_kernel[(num_rows,)](
            qkv,
            cos,
            sin,
            ROW=3 * num_heads * head_dim,
            NUM_TURNED=2 * num_heads,
            HALF=half,
            HEADS_BLOCK=triton.next_power_of_2(2 * num_heads),
            HALF_BLOCK=triton.next_power_of_2(half),
            num_warps=4,
            enable_fp_fusion=False,
        )
