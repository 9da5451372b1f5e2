"""From one packed projection to rotated queries, and to keys and values in the cache: one pass over `qkv`.

qkv of a token   [ q heads · d | k heads · d | v heads · d ]
                     │ norm, rotate   │ norm, rotate   │
                     ▼                ▼                ▼
                  queries       keys[slot]       values[slot]
"""

from __future__ import annotations

import math
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.cached_heads import CachedHeads, HeadCodes
from stages.kernels.codes.head_codes import head_codes

_MOST_HEADS = 8  # of one program


@triton.jit
def _rotated(first, second, weight_ptr, cos, sin, eps, HALF: tl.constexpr, dtype: tl.constexpr):
    """Norm per head, then rotate; every step is rounded where the reference rounds."""
    lanes = tl.arange(0, HALF)[None, :]
    square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = tl.rsqrt(square / (2 * HALF) + eps)[:, None]
    first = (first * scale).to(dtype).to(tl.float32) * tl.load(weight_ptr + lanes).to(tl.float32)
    second = (second * scale).to(dtype).to(tl.float32) * tl.load(weight_ptr + HALF + lanes).to(tl.float32)
    first, second = first.to(dtype).to(tl.float32), second.to(dtype).to(tl.float32)
    left = (first * cos).to(dtype).to(tl.float32) - (second * sin).to(dtype).to(tl.float32)
    right = (second * cos).to(dtype).to(tl.float32) + (first * sin).to(dtype).to(tl.float32)
    return left.to(dtype), right.to(dtype)


@triton.jit
def _store_heads(
    first,
    second,
    heads_ptr,
    scales_ptr,
    place,
    HALF: tl.constexpr,
    PART: tl.constexpr,
    CODED: tl.constexpr,
):
    """Store both halves `[PART, HALF]` of heads from `place` on, with CODED in FP8."""
    places = place + tl.arange(0, PART)
    target = heads_ptr + places[:, None] * 2 * HALF + tl.arange(0, HALF)[None, :]
    if CODED:
        left, right, scales = head_codes(first.to(tl.float32), second.to(tl.float32))
        tl.store(target, left)
        tl.store(target + HALF, right)
        tl.store(scales_ptr + places, scales)
    else:
        tl.store(target, first)
        tl.store(target + HALF, second)


@triton.jit
def _cache_entry_kernel(
    qkv_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    slots_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PART: tl.constexpr,
    CODED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * PART
    heads = head + tl.arange(0, PART)[:, None]
    lanes = tl.arange(0, HALF)[None, :]
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    source = qkv_ptr + (token * (HEADS + 2 * KV_HEADS) + heads) * 2 * HALF + lanes
    first, second = tl.load(source), tl.load(source + HALF)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if head >= HEADS + KV_HEADS:
        _store_heads(
            first, second, values_ptr, value_scales_ptr, slot * KV_HEADS + head - HEADS - KV_HEADS, HALF, PART, CODED
        )
    else:
        cos = tl.load(cos_ptr + token * 2 * HALF + lanes).to(tl.float32)
        sin = tl.load(sin_ptr + token * 2 * HALF + lanes).to(tl.float32)
        wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
        if head >= HEADS:
            left, right = _rotated(wide_first, wide_second, k_norm_ptr, cos, sin, eps, HALF, dtype)
            _store_heads(left, right, keys_ptr, key_scales_ptr, slot * KV_HEADS + head - HEADS, HALF, PART, CODED)
        else:
            left, right = _rotated(wide_first, wide_second, q_norm_ptr, cos, sin, eps, HALF, dtype)
            target = q_ptr + (token * HEADS + heads) * 2 * HALF + lanes
            tl.store(target, left)
            tl.store(target + HALF, right)


def enter_cache(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor],
    rotation: tuple[Tensor, Tensor],
    eps: float,
    keys: CachedHeads,
    values: CachedHeads,
    slots: Tensor,
) -> Tensor:
    """Return queries `[n, heads, d]` of packed rows `[n, (heads + 2 kv_heads) d]`; keys and values go to `slots` int32.

    `norms` are the query and key norms `[d]`, `rotation` cosines and sines `[n, 1, d]` in the dtype of `qkv`, keys and
    values `[capacity, kv_heads, d]`, as they are or codes. The reference is `stages.qwen3_vl.text.project_qkv` behind
    its products.
    """
    num_tokens, kv_heads, head_dim = qkv.shape[0], keys.shape[1], keys.shape[2]
    num_heads = qkv.shape[1] // head_dim - 2 * kv_heads
    q = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    is_coded = isinstance(keys, HeadCodes)
    stored = [
        (heads.codes, heads.scales) if isinstance(heads, HeadCodes) else (heads, heads) for heads in (keys, values)
    ]
    part = math.gcd(math.gcd(num_heads, kv_heads), _MOST_HEADS)
    if num_tokens:
        grid = (num_tokens, (num_heads + 2 * kv_heads) // part)
        _cache_entry_kernel[grid](
            qkv,
            *norms,
            *rotation,
            slots,
            q,
            *chain(*zip(*stored, strict=True)),
            eps,
            HEADS=num_heads,
            KV_HEADS=kv_heads,
            HALF=head_dim // 2,
            PART=part,
            CODED=is_coded,
            num_warps=1 if part * head_dim <= 512 else 2,
        )
    return q
