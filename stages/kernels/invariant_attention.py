"""Attention for `--deterministic`: a query has the same bits as a decode token, in a prompt, and in any piece of one.

    keys of a session   [ 64 | 64 | 64 | 64 | 64 | 64 | 64 | 64 | 64 | . ]   blocks of 64 from its first key on
    a query sees        [═══════════════════════════════════════>]           573 keys: 9 blocks, 3 in each of 4 parts
    its parts           [      0       |      1       |      2       |3]

A part is one sequence of steps over its blocks; the parts are merged from the first to the last. How many blocks a part
has depends on how many keys the query sees, and on nothing else. Few decode tokens have their parts computed side by
side, so that long sessions fill a GPU. Many are tiles of one query each, and queries of a prompt share a tile, which
computes one part after the other. It never crosses a multiple of 256 tokens, so that its queries have the same parts;
what one of them does not see of the tile's keys adds zero to what it has, which changes no bit. Sums go through tensor
cores, weights' as well: these add up in one order whatever the shape of a tile, where a sum over its lanes depends on
how many there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.cached_heads import CachedHeads
from stages.kernels.codes.head_codes import head_operands, unpack_codes

_LOG2_E = 1.4426950408889634
_KEYS = 64
_PARTS = 4
_DECODE_ROWS, _TILE_ROWS = 16, 64
_PROGRAMS = 1024  # fill a GPU several times
_LEAST = tl.constexpr(-1e30)  # in place of -inf, which less itself is no number
_ONES = tl.constexpr(16)  # columns: the fewest that a matrix instruction takes


@triton.jit
def _merge(best, total, summed, part_best, part_total, part_summed):
    """Merge a part into what is before it; with nothing in either, the other keeps its bits."""
    higher = tl.maximum(best, part_best)
    base = tl.maximum(higher, _LEAST)
    mine, its = tl.exp2(best - base), tl.exp2(part_best - base)
    total = tl.fma(part_total, its, total * mine)
    summed = tl.fma(part_summed, its[:, None], summed * mine[:, None])
    return higher, total, summed


@triton.jit
def _attend_part(
    q,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    base,
    seen,
    first,
    stop,
    scale,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CODED: tl.constexpr,
):
    """Attend with rows `[R, d]` to keys `first` to `stop` of a region; row r sees the first `seen[r]`.

    `base` is the place of its first head. With CODED keys and values are pairs of codes, with scales.
    """
    ones = tl.full((KEYS, _ONES), 1.0, q.dtype)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, _ONES), tl.float32)
    width: tl.constexpr = HEAD_DIM // 2 if CODED else HEAD_DIM
    summed = tl.zeros((ROWS, width), tl.float32)
    lanes = tl.arange(0, width)
    if CODED:
        even_summed = summed
        even_q, odd_q = tl.split(tl.reshape(q, (ROWS, width, 2)))
    for at in range(first, stop, KEYS):
        place = at + tl.arange(0, KEYS)
        is_key = place < stop
        head = base + place.to(tl.int64) * KV_HEADS
        offset = head[:, None] * width + lanes[None, :]
        k = tl.load(keys_ptr + offset, mask=is_key[:, None], other=0)
        if CODED:
            even, odd = unpack_codes(k, q.dtype)
            scores = tl.dot(even_q, tl.trans(even), input_precision="ieee")
            scores = tl.dot(odd_q, tl.trans(odd), scores, input_precision="ieee")
            scores *= tl.load(key_scales_ptr + head, mask=is_key, other=0.0).to(tl.float32)[None, :]
        else:
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores *= scale
        scores = tl.where(place[None, :] < seen[:, None], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        least = tl.maximum(higher, _LEAST)
        shrink = tl.exp2(best - least)
        weights = tl.exp2(scores - least[:, None]).to(q.dtype)
        v = tl.load(values_ptr + offset, mask=is_key[:, None], other=0)
        total = tl.dot(weights, ones, total * shrink[:, None], input_precision="ieee")
        if CODED:
            even, v = unpack_codes(v, q.dtype)
            weights *= tl.load(value_scales_ptr + head, mask=is_key, other=0.0).to(q.dtype)[None, :]
            even_summed = tl.dot(weights, even, even_summed * shrink[:, None], input_precision="ieee")
        summed = tl.dot(weights, v, summed * shrink[:, None], input_precision="ieee")
        best = higher
    if CODED:
        summed = tl.reshape(tl.join(even_summed, summed), (ROWS, HEAD_DIM))
    return best, tl.max(total, axis=1), summed


@triton.jit
def _mean(total, summed):
    return summed / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def _part_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    tokens_ptr,
    starts_ptr,
    lengths_ptr,
    sums_ptr,
    stats_ptr,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    CODED: tl.constexpr,
):
    """One part of one decode token, for all query heads of one kv head."""
    index, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_ptr + index)
    start = tl.load(starts_ptr + index).to(tl.int64)
    token = tl.load(tokens_ptr + index).to(tl.int64)
    lanes, heads = tl.arange(0, HEAD_DIM), tl.arange(0, ROWS)
    is_head = heads < tl.where(token >= 0, GROUP, 0)
    head = token * KV_HEADS * GROUP + kv_head * GROUP + heads
    q = tl.load(q_ptr + head[:, None] * HEAD_DIM + lanes[None, :], mask=is_head[:, None], other=0.0)
    part_keys = tl.cdiv(tl.cdiv(length, KEYS), PARTS) * KEYS
    first = part * part_keys
    stop = tl.minimum(first + part_keys, length)
    seen = heads * 0 + length
    best, total, summed = _attend_part(
        q,
        keys_ptr,
        values_ptr,
        key_scales_ptr,
        value_scales_ptr,
        start * KV_HEADS + kv_head,
        seen,
        first,
        stop,
        scale,
        KV_HEADS,
        HEAD_DIM,
        ROWS,
        KEYS,
        CODED,
    )
    place = ((index * KV_HEADS + kv_head) * PARTS + part) * GROUP + heads
    tl.store(sums_ptr + place[:, None].to(tl.int64) * HEAD_DIM + lanes[None, :], summed, mask=is_head[:, None])
    tl.store(stats_ptr + 2 * place, best, mask=is_head)
    tl.store(stats_ptr + 2 * place + 1, total, mask=is_head)


@triton.jit
def _merge_kernel(
    sums_ptr,
    stats_ptr,
    tokens_ptr,
    out_ptr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Merge the parts of one decode token, for all query heads of one kv head."""
    index, kv_head = tl.program_id(0), tl.program_id(1)
    token = tl.load(tokens_ptr + index).to(tl.int64)
    if token < 0:
        return
    lanes, heads = tl.arange(0, HEAD_DIM), tl.arange(0, ROWS)
    is_head = heads < GROUP
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    for part in range(PARTS):
        place = ((index * KV_HEADS + kv_head) * PARTS + part) * GROUP + heads
        part_best = tl.load(stats_ptr + 2 * place, mask=is_head, other=float("-inf"))
        part_total = tl.load(stats_ptr + 2 * place + 1, mask=is_head, other=0.0)
        at = place[:, None].to(tl.int64) * HEAD_DIM + lanes[None, :]
        part_summed = tl.load(sums_ptr + at, mask=is_head[:, None], other=0.0)
        best, total, summed = _merge(best, total, summed, part_best, part_total, part_summed)
    head = token * KV_HEADS * GROUP + kv_head * GROUP + heads
    target = out_ptr + head[:, None] * HEAD_DIM + lanes[None, :]
    tl.store(target, _mean(total, summed).to(out_ptr.dtype.element_ty), mask=is_head[:, None])


@triton.jit
def _tile_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    queries_ptr,
    starts_ptr,
    lengths_ptr,
    out_ptr,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PARTS: tl.constexpr,
    CODED: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """All parts of one tile's queries; row r is head r % HEADS of query r // HEADS, HEADS being GROUP or just above.

    `queries_ptr` says where each tile begins, or with SINGLE which token is a tile by itself.
    """
    tile, kv_head = tl.program_id(0), tl.program_id(1)
    first_query = tl.load(queries_ptr + tile)
    if SINGLE:
        num_queries = tl.where(first_query >= 0, 1, 0)
    else:
        num_queries = tl.load(queries_ptr + tile + 1) - first_query
    if num_queries <= 0:
        return
    length = tl.load(lengths_ptr + tile)
    base = tl.load(starts_ptr + tile).to(tl.int64) * KV_HEADS + kv_head
    lanes, rows = tl.arange(0, HEAD_DIM), tl.arange(0, ROWS)
    query, head = rows // HEADS, rows % HEADS
    is_row = (query < num_queries) & (head < GROUP)
    at = ((first_query + query).to(tl.int64) * KV_HEADS * GROUP + kv_head * GROUP + head)[:, None] * HEAD_DIM
    q = tl.load(q_ptr + at + lanes[None, :], mask=is_row[:, None], other=0.0)
    seen = length - num_queries + 1 + query
    part_keys = tl.maximum(tl.cdiv(tl.cdiv(length, KEYS), PARTS), 1) * KEYS
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    for first in range(0, length, part_keys):
        stop = tl.minimum(first + part_keys, length)
        part_best, part_total, part_summed = _attend_part(
            q,
            keys_ptr,
            values_ptr,
            key_scales_ptr,
            value_scales_ptr,
            base,
            seen,
            first,
            stop,
            scale,
            KV_HEADS,
            HEAD_DIM,
            ROWS,
            KEYS,
            CODED,
        )
        best, total, summed = _merge(best, total, summed, part_best, part_total, part_summed)
    mean = _mean(total, summed).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at + lanes[None, :], mean, mask=is_row[:, None])


def queries_per_tile(num_heads: int, kv_heads: int) -> int:
    """Return how many queries a tile has at most: a power of two of at most 64."""
    heads: int = triton.next_power_of_2(num_heads // kv_heads)
    return max(1, _TILE_ROWS // heads)


def attend_invariant_tiles(
    q: Tensor, keys: CachedHeads, values: CachedHeads, tiles: tuple[Tensor, Tensor, Tensor], *, out: Tensor
) -> None:
    """Write `out` for the queries of `tiles`, which are as of `flash_attention.attend_tiles`, and causal.

    Shapes: q and out `[n, heads, d]`, keys and values `[capacity, kv_heads, d]`, values or codes. A tile has at most
    `queries_per_tile` queries, and is cut so that of a session's tokens none is on both sides of a multiple of that.
    """
    _attend_tiles(q, keys, values, tiles, out=out, num_rows=_TILE_ROWS)


def attend_invariant_tokens(
    q: Tensor, keys: CachedHeads, values: CachedHeads, tokens: Tensor, starts: Tensor, lengths: Tensor, *, out: Tensor
) -> None:
    """Write `out[tokens]` for single queries `q[tokens]`; shapes as of `decode_attention.attend_decode_tokens`."""
    num_tokens, kv_heads = tokens.shape[0], keys.shape[1]
    if num_tokens * kv_heads >= _PROGRAMS:
        _attend_tiles(q, keys, values, (tokens, starts, lengths), out=out, num_rows=_DECODE_ROWS, is_single=True)
    elif num_tokens:
        _attend_parts(q, keys, values, (tokens, starts, lengths), out=out)


def _operands(keys: CachedHeads, values: CachedHeads) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], bool]:
    """Return what a kernel reads of the cache, and whether it is codes."""
    (key_heads, key_scales, is_coded), (value_heads, value_scales, _) = head_operands(keys), head_operands(values)
    return (key_heads, value_heads, key_scales, value_scales), is_coded


def _attend_tiles(
    q: Tensor,
    keys: CachedHeads,
    values: CachedHeads,
    tiles: tuple[Tensor, Tensor, Tensor],
    *,
    out: Tensor,
    num_rows: int,
    is_single: bool = False,
) -> None:
    (kv_heads, head_dim), group = keys.shape[1:], q.shape[1] // keys.shape[1]
    heads, (operands, is_coded) = triton.next_power_of_2(group), _operands(keys, values)
    _tile_kernel[(tiles[-1].shape[0], kv_heads)](
        q,
        *operands,
        *tiles,
        out,
        head_dim**-0.5 * _LOG2_E,
        KV_HEADS=kv_heads,
        GROUP=group,
        HEADS=heads,
        HEAD_DIM=head_dim,
        ROWS=max(num_rows, heads),
        KEYS=_KEYS,
        CODED=is_coded,
        PARTS=_PARTS,
        SINGLE=is_single,
        num_warps=2 if is_single and is_coded else 4,
        num_stages=2,
    )


def _attend_parts(
    q: Tensor, keys: CachedHeads, values: CachedHeads, places: tuple[Tensor, Tensor, Tensor], *, out: Tensor
) -> None:
    """Compute the parts of few tokens side by side."""
    (kv_heads, head_dim), group = keys.shape[1:], q.shape[1] // keys.shape[1]
    num_tokens = places[0].shape[0]
    sums = torch.empty(num_tokens * q.shape[1] * _PARTS, head_dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(num_tokens * q.shape[1] * _PARTS, 2, dtype=torch.float32, device=q.device)
    sizes = {"KV_HEADS": kv_heads, "GROUP": group, "HEAD_DIM": head_dim, "PARTS": _PARTS}
    heads, (operands, is_coded) = triton.next_power_of_2(group), _operands(keys, values)
    _part_kernel[(num_tokens, kv_heads, _PARTS)](
        q,
        *operands,
        *places,
        sums,
        stats,
        head_dim**-0.5 * _LOG2_E,
        **sizes,
        ROWS=max(_DECODE_ROWS, heads),
        KEYS=_KEYS,
        CODED=is_coded,
        num_warps=4,
        num_stages=3,
    )
    _merge_kernel[(num_tokens, kv_heads)](sums, stats, places[0], out, **sizes, ROWS=max(2, heads), num_warps=4)
