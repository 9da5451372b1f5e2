"""A draw from the best few tokens of every logit row, in four launches.

    logits [V] ─► key of the best of every 64 neighbours ─► best 128 groups ─► best 128 members ─► ranked, cut, drawn

It is `candidates.draw(rank_best(…))`, which tells why nothing is lost and why shares are whole numbers, with the same
operations in the same order. A key is a score's bits, ordered, above its id's complement, so that all differ and the
best 128 are those from a threshold on. That is found bit by bit, from the highest down, by counting: a radix select.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_RANKED = 128
"""Tokens that are ranked. A program holds the keys of their groups' members, 8,192, in registers; more: not tried."""

_GROUP = tl.constexpr(64)
_GROUPS_PER_PROGRAM = 64
_NOBODY = tl.constexpr(-(1 << 63))  # below every key
_LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _keys_of(scores, ids):
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # + 0.0 makes -0.0 equal to 0.0
    ordered = bits ^ ((bits >> 31) & _LARGEST)  # of negative numbers, the larger has the smaller bits
    return (ordered.to(tl.int64) << 32) | (ids ^ _LARGEST).to(tl.int64)


@triton.jit
def _store_best(keys, values, out_ptr, WIDTH: tl.constexpr, NO_VALUE: tl.constexpr):
    """Store the values `[B]` of the best WIDTH keys, in the order they lie in, and NO_VALUE for those that miss."""
    zero = tl.zeros((), dtype=tl.int64)
    threshold = tl.where(tl.sum((keys >= zero).to(tl.int32)) >= WIDTH, zero, zero + _NOBODY)
    for step in range(63):
        candidate = threshold + ((zero + 1) << (62 - step))
        threshold = tl.where(tl.sum((keys >= candidate).to(tl.int32)) >= WIDTH, candidate, threshold)
    is_best = (keys >= threshold) & (keys > _NOBODY)
    places = tl.cumsum(is_best.to(tl.int32)) - 1
    tl.store(out_ptr + places, values, mask=is_best)
    slots = tl.arange(0, WIDTH)
    tl.store(out_ptr + slots, tl.full((WIDTH,), NO_VALUE, values.dtype), mask=slots >= tl.sum(is_best.to(tl.int32)))


@triton.jit(do_not_specialize=["rows_ptr"])
def _group_keys_kernel(
    logits_ptr, rows_ptr, keys_ptr, VOCAB: tl.constexpr, NUM_GROUPS: tl.constexpr, GROUPS: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64)
    logits_ptr += tl.load(rows_ptr + at).to(tl.int64) * VOCAB
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    ids = groups[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    scores = tl.load(logits_ptr + ids, mask=ids < VOCAB, other=float("-inf")).to(tl.float32)
    tl.store(keys_ptr + at * NUM_GROUPS + groups, _keys_of(tl.max(scores, axis=1), groups), mask=groups < NUM_GROUPS)


@triton.jit
def _best_groups_kernel(keys_ptr, best_ptr, NUM_GROUPS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    groups = tl.arange(0, BLOCK)
    keys = tl.load(keys_ptr + row * NUM_GROUPS + groups, mask=groups < NUM_GROUPS, other=_NOBODY)
    _store_best(keys, groups, best_ptr + row * WIDTH, WIDTH, -1)


@triton.jit(do_not_specialize=["rows_ptr"])
def _best_members_kernel(logits_ptr, rows_ptr, groups_ptr, best_ptr, VOCAB: tl.constexpr, WIDTH: tl.constexpr):
    at = tl.program_id(0).to(tl.int64)
    logits_ptr += tl.load(rows_ptr + at).to(tl.int64) * VOCAB
    groups = tl.load(groups_ptr + at * WIDTH + tl.arange(0, WIDTH))[:, None]
    ids = groups * _GROUP + tl.arange(0, _GROUP)[None, :]
    is_there = (groups >= 0) & (ids < VOCAB)
    scores = tl.load(logits_ptr + ids, mask=is_there, other=0.0).to(tl.float32)
    keys = tl.reshape(tl.where(is_there, _keys_of(scores, ids), _NOBODY), (WIDTH * _GROUP,))
    _store_best(keys, keys, best_ptr + at * WIDTH, WIDTH, _NOBODY)


@triton.jit(do_not_specialize=["table_ptr", "num_rows"])
def _draw_kernel(
    best_ptr, table_ptr, tokens_ptr, num_rows, UNIT: tl.constexpr, SPARE: tl.constexpr, VOCAB: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, WIDTH)
    keys = tl.sort(tl.load(best_ptr + row * WIDTH + slots), descending=True)
    temperature, last, top_p, min_p, number = (
        tl.load(table_ptr + 1 * num_rows + row),
        tl.load(table_ptr + 2 * num_rows + row).to(tl.int32),
        tl.load(table_ptr + 3 * num_rows + row),
        tl.load(table_ptr + 4 * num_rows + row),
        tl.load(table_ptr + 5 * num_rows + row),
    )
    ordered = (keys >> 32).to(tl.int32)
    scores = (ordered ^ ((ordered >> 31) & _LARGEST)).to(tl.float32, bitcast=True).to(tl.float64)
    scores = tl.where(keys > _NOBODY, scores, float("-inf"))
    relative = tl.exp((scores - tl.max(scores)) / temperature)
    of_last = tl.max(tl.where(slots == last, scores, float("-inf")))
    whole = tl.where((scores >= of_last) & (slots <= last + SPARE), (relative * UNIT).to(tl.int64), 0)
    until, total = tl.cumsum(whole), tl.sum(whole)
    is_kept = ((until - whole).to(tl.float64) < top_p * total.to(tl.float64)) & (relative >= min_p)
    whole = tl.where(is_kept, whole, 0)
    until, total = tl.cumsum(whole), tl.sum(whole)
    target = (number * total.to(tl.float64)).to(tl.int64)  # below the total: a number below 1 stays so in rounding
    place = tl.minimum(tl.sum((until <= target).to(tl.int32)), WIDTH - 1)  # with NaN the total is 0
    token = tl.sum(tl.where(slots == place, (keys & 0xFFFFFFFF) ^ _LARGEST, 0))
    tl.store(tokens_ptr + row, tl.minimum(tl.maximum(token, 0), VOCAB - 1))


def draw_top_k(logits: Tensor, table: Tensor, *, unit: float, num_spare: int) -> Tensor:
    """Draw tokens int64 `[n]` from `logits` `[r, V]` in bf16 or fp32, contiguous both.

    `table` fp64 `[6, n]` is as `DrawSettings.of_table` has it, with `MOST_RANKED - num_spare` tokens in the top k at
    most; `unit` is `unit_of(V)`.
    """
    num_rows, vocab = table.shape[1], logits.shape[1]
    num_groups = triton.cdiv(vocab, _GROUP.value)
    block = max(MOST_RANKED, triton.next_power_of_2(num_groups))
    assert logits.is_contiguous(), "rows are found by their number"
    assert table.is_contiguous(), "settings are found by their row"
    keys = torch.empty(num_rows, num_groups, dtype=torch.int64, device=logits.device)
    groups = torch.empty(num_rows, MOST_RANKED, dtype=torch.int32, device=logits.device)
    best = torch.empty(num_rows, MOST_RANKED, dtype=torch.int64, device=logits.device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        _group_keys_kernel[(num_rows, triton.cdiv(num_groups, _GROUPS_PER_PROGRAM))](
            logits, table, keys, VOCAB=vocab, NUM_GROUPS=num_groups, GROUPS=_GROUPS_PER_PROGRAM, num_warps=4
        )
        _best_groups_kernel[(num_rows,)](
            keys, groups, NUM_GROUPS=num_groups, BLOCK=block, WIDTH=MOST_RANKED, num_warps=8
        )
        _best_members_kernel[(num_rows,)](logits, table, groups, best, VOCAB=vocab, WIDTH=MOST_RANKED, num_warps=8)
        _draw_kernel[(num_rows,)](
            best, table, tokens, num_rows, UNIT=unit, SPARE=num_spare, VOCAB=vocab, WIDTH=MOST_RANKED, num_warps=1
        )
    return tokens
