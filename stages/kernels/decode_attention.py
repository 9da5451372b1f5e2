"""Attention of decode tokens, each over one region of the flat cache.

    queries       [ a | b | c ]        one token each
    flat cache    [ . a a a a a . b b b b . c c c ]
                      └ start, length of a

A region may be cut into parts that are computed side by side and combined afterwards, so that few long sessions fill
the GPU as well (the idea is flash-decoding's). All query heads of one kv head share each load of keys and values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634
_KEYS = 64  # of one step of the inner loop
_FEWEST_ROWS = 16  # what a matrix instruction takes
_MOST_PARTS = 32
_PROGRAMS = 1024  # enough to fill a GPU several times


@triton.jit
def _attend_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    tokens_ptr,
    starts_ptr,
    lengths_ptr,
    out_ptr,
    sums_ptr,
    stats_ptr,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PARTS: tl.constexpr,
):
    index, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + index)
    start = tl.load(starts_ptr + index).to(tl.int64)
    token = tl.load(tokens_ptr + index).to(tl.int64)
    lanes = tl.arange(0, HEAD_DIM)
    heads = tl.arange(0, ROWS)
    num_heads = tl.where(token >= 0, GROUP, 0)
    is_head = heads[:, None] < num_heads
    head = token * KV_HEADS * GROUP + kv_head * GROUP + heads
    q = tl.load(q_ptr + head[:, None] * HEAD_DIM + lanes[None, :], mask=is_head, other=0.0)
    part_keys = tl.cdiv(tl.cdiv(length, KEYS), PARTS) * KEYS
    first = part * part_keys
    stop = tl.minimum(first + part_keys, length)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    base = (start * KV_HEADS + kv_head) * HEAD_DIM
    for at in range(first, stop, KEYS):
        place = at + tl.arange(0, KEYS)
        is_key = place < stop
        offset = base + place[:, None].to(tl.int64) * KV_HEADS * HEAD_DIM + lanes[None, :]
        k = tl.load(keys_ptr + offset, mask=is_key[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        shrink = tl.exp2(best - higher)
        weights = tl.exp2(scores - higher[:, None])
        v = tl.load(values_ptr + offset, mask=is_key[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, axis=1)
        summed = summed * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = higher
    if PARTS == 1:
        mean = summed / tl.where(total > 0, total, 1.0)[:, None]
        target = out_ptr + head[:, None] * HEAD_DIM + lanes[None, :]
        tl.store(target, mean.to(out_ptr.dtype.element_ty), mask=is_head)
    else:
        place = ((index * KV_HEADS + kv_head) * PARTS + part) * GROUP + heads
        tl.store(sums_ptr + place[:, None].to(tl.int64) * HEAD_DIM + lanes[None, :], summed, mask=is_head)
        tl.store(stats_ptr + 2 * place, best, mask=heads < num_heads)
        tl.store(stats_ptr + 2 * place + 1, total, mask=heads < num_heads)


@triton.jit
def _combine_kernel(
    sums_ptr,
    stats_ptr,
    tokens_ptr,
    out_ptr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
):
    index, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(tokens_ptr + index).to(tl.int64)
    if token < 0:
        return
    lanes = tl.arange(0, HEAD_DIM)
    parts = tl.arange(0, PARTS)
    place = ((index * KV_HEADS + head // GROUP) * PARTS + parts) * GROUP + head % GROUP
    best = tl.load(stats_ptr + 2 * place)
    total = tl.load(stats_ptr + 2 * place + 1)
    highest = tl.maximum(tl.max(best, axis=0), -1e30)  # no part saw a key: -inf less -inf would be no number
    share = tl.where(total > 0, tl.exp2(best - highest), 0.0)
    sums = tl.load(sums_ptr + place[:, None].to(tl.int64) * HEAD_DIM + lanes[None, :])
    whole = tl.sum(total * share, axis=0)
    mean = tl.sum(sums * share[:, None], axis=0) / tl.where(whole > 0, whole, 1.0)
    tl.store(out_ptr + (token * KV_HEADS * GROUP + head) * HEAD_DIM + lanes, mean.to(out_ptr.dtype.element_ty))


def num_parts(num_tokens: int, kv_heads: int) -> int:
    """Return into how many parts every region is cut, a power of two, so that `num_tokens` tokens fill the GPU."""
    parts = 1
    while parts < _MOST_PARTS and num_tokens * kv_heads * parts * 2 <= _PROGRAMS:
        parts *= 2
    return parts


def attend_decode_tokens(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tokens: Tensor,
    starts: Tensor,
    lengths: Tensor,
    *,
    out: Tensor,
    parts: int,
) -> None:
    """Write `out[tokens]` for queries `q[tokens]`: token i attends to `lengths[i]` cache slots from `starts[i]`.

    Shapes: q and out `[n, heads, d]`, keys and values `[capacity, kv_heads, d]`, the others int32 `[t]`. Scale is
    d ** -0.5. A length of 0 gives zeros, a negative token is nobody's. Nothing but shapes and `parts` decides how a
    token is computed.
    """
    num_tokens, (kv_heads, head_dim) = tokens.shape[0], keys.shape[1:]
    group = q.shape[1] // kv_heads
    sums = torch.empty(
        num_tokens * q.shape[1] * parts if parts > 1 else 0, head_dim, dtype=torch.float32, device=q.device
    )
    stats = torch.empty(num_tokens * q.shape[1] * parts if parts > 1 else 0, 2, dtype=torch.float32, device=q.device)
    sizes = {"KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "PARTS": parts}
    if not num_tokens:
        return
    _attend_kernel[(num_tokens, kv_heads, parts)](
        q,
        keys,
        values,
        tokens,
        starts,
        lengths,
        out,
        sums,
        stats,
        head_dim**-0.5 * _LOG2_E,
        **sizes,
        ROWS=max(_FEWEST_ROWS, triton.next_power_of_2(group)),
        KEYS=_KEYS,
        num_warps=4,
        num_stages=3,
    )
    if parts > 1:
        _combine_kernel[(num_tokens, q.shape[1])](sums, stats, tokens, out, **sizes, num_warps=1)
