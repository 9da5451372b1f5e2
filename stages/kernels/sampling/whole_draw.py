"""A draw from all tokens of every logit row in bf16, in three launches.

    logits [V] ─► tokens of each of 65,536 scores ─► walk down the scores ─► a score, and which of its tokens ─► id

It is `whole_vocabulary.draw_whole`, which tells what is looked for and why shares are whole numbers, with the same
operations. A bf16 has 16 bits: how many tokens have each score is all that there is to know of a row, and what one of
them has is computed from the score. Most blocks of scores are no token's, and are passed over.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_ROWS = 128
"""As many have counts, whatever the number of rows: an allocator keeps memory for each size that it has seen."""

_NUM_SCORES = tl.constexpr(1 << 16)
_BLOCK = tl.constexpr(2048)  # scores of a step
_POSITIVE = tl.constexpr(0x7FFF)


@triton.jit
def _places_of(scores):
    """Return the place of each score in bf16 among all of them, the largest first; both zeros have one."""
    bits = (scores.to(tl.float32) + 0.0).to(tl.int32, bitcast=True) >> 16
    return tl.where(bits >= 0, _POSITIVE - bits, bits & 0xFFFF)


@triton.jit
def _score_at(places):
    bits = tl.where(places <= _POSITIVE, _POSITIVE - places, places) << 16
    return bits.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _find(counts_ptr, best, temperature, target, UNIT: tl.constexpr, BY_SHARES: tl.constexpr):
    """Find where shares, or tokens, exceed `target` when they are added up from the best score down.

    Returns the score's place, the tokens and the shares before it, what each of its tokens has, and how many there are.
    """
    zero = tl.zeros((), dtype=tl.int64)
    place, tokens, before, each, tied = zero, zero, zero, zero, zero
    tokens_done, shares_done = zero, zero
    for first in range(0, _NUM_SCORES, _BLOCK):
        places = first + tl.arange(0, _BLOCK)
        counts = tl.load(counts_ptr + places).to(tl.int64)
        if tl.sum(counts) > 0:
            share = (tl.exp((_score_at(places) - best) / temperature) * UNIT).to(tl.int64)
            share = tl.where(counts > 0, share, 0)
            tokens_until, shares_until = tokens_done + tl.cumsum(counts), shares_done + tl.cumsum(counts * share)
            until, amounts = (shares_until, counts * share) if BY_SHARES else (tokens_until, counts)
            is_here = (until > target) & (until - amounts <= target)
            place += tl.sum(tl.where(is_here, places, 0))
            tokens += tl.sum(tl.where(is_here, tokens_until - counts, 0))
            before += tl.sum(tl.where(is_here, shares_until - counts * share, 0))
            each += tl.sum(tl.where(is_here, share, 0))
            tied += tl.sum(tl.where(is_here, counts, 0))
            tokens_done += tl.sum(counts)
            shares_done += tl.sum(counts * share)
    return place, tokens, before, tl.maximum(each, 1), tl.maximum(tied, 1)


@triton.jit
def _totals(counts_ptr, temperature, min_p, UNIT: tl.constexpr):
    """Return the best score, all shares, and those of tokens that are `min_p` times as likely as the best."""
    place = tl.full((), _NUM_SCORES - 1, tl.int32)
    for first in range(0, _NUM_SCORES, _BLOCK):
        places = first + tl.arange(0, _BLOCK)
        is_score = tl.load(counts_ptr + places) > 0
        place = tl.minimum(place, tl.min(tl.where(is_score, places, _NUM_SCORES - 1)))
    best = _score_at(place)
    total = tl.zeros((), dtype=tl.int64)
    likely = total
    for first in range(0, _NUM_SCORES, _BLOCK):
        places = first + tl.arange(0, _BLOCK)
        counts = tl.load(counts_ptr + places).to(tl.int64)
        if tl.sum(counts) > 0:
            relative = tl.exp((_score_at(places) - best) / temperature)
            shares = tl.where(counts > 0, counts * (relative * UNIT).to(tl.int64), 0)
            total += tl.sum(shares)
            likely += tl.sum(tl.where(relative >= min_p, shares, 0))
    return best, total, likely


@triton.jit(do_not_specialize=["table_ptr"])
def _count_kernel(logits_ptr, table_ptr, counts_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = ids < VOCAB
    logits = tl.load(
        logits_ptr + tl.load(table_ptr + row).to(tl.int64) * VOCAB + ids, mask=is_token, other=float("-inf")
    )
    tl.atomic_add(counts_ptr + row * _NUM_SCORES + _places_of(logits), 1, mask=is_token, sem="relaxed")


@triton.jit(do_not_specialize=["table_ptr", "num_rows"])
def _walk_kernel(
    table_ptr, counts_ptr, found_ptr, num_rows, UNIT: tl.constexpr, SPARE: tl.constexpr, VOCAB: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    counts_ptr += row * _NUM_SCORES
    temperature, last, top_p, min_p, number = (
        tl.load(table_ptr + 1 * num_rows + row),
        tl.load(table_ptr + 2 * num_rows + row).to(tl.int64),
        tl.load(table_ptr + 3 * num_rows + row),
        tl.load(table_ptr + 4 * num_rows + row),
        tl.load(table_ptr + 5 * num_rows + row),
    )
    best, total, likely = _totals(counts_ptr, temperature, min_p, UNIT)
    if last < VOCAB - 1:
        _, tokens, before, each, tied = _find(counts_ptr, best, temperature, last, UNIT, False)
        total = tl.minimum(total, before + each * tl.minimum(tied, last + 1 + SPARE - tokens))
    if top_p < 1:
        limit = top_p * total.to(tl.float64)
        target = limit.to(tl.int64)
        target = tl.where(target.to(tl.float64) < limit, target, target - 1)
        _, tokens, before, each, tied = _find(counts_ptr, best, temperature, target, UNIT, True)
        total = before + (tl.minimum((target - before) // each, tied - 1) + 1) * each
    total = tl.minimum(total, likely)
    target = (number * total.to(tl.float64)).to(tl.int64)  # below the total: a number below 1 stays so in rounding
    place, tokens, before, each, tied = _find(counts_ptr, best, temperature, target, UNIT, True)
    tl.store(found_ptr + 2 * row, place)
    tl.store(found_ptr + 2 * row + 1, tl.minimum((target - before) // each, tied - 1))


@triton.jit(do_not_specialize=["table_ptr"])
def _pick_kernel(logits_ptr, table_ptr, found_ptr, tokens_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += tl.load(table_ptr + row).to(tl.int64) * VOCAB
    place, nth = tl.load(found_ptr + 2 * row), tl.load(found_ptr + 2 * row + 1)
    token, done = tl.zeros((), dtype=tl.int64), tl.zeros((), dtype=tl.int64)
    for first in range(0, VOCAB, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + ids, mask=ids < VOCAB, other=float("-inf"))
        is_tied = ((_places_of(logits) == place) & (ids < VOCAB)).to(tl.int64)
        is_it = (is_tied > 0) & (done + tl.cumsum(is_tied) == nth + 1)
        token += tl.sum(tl.where(is_it, ids, 0))
        done += tl.sum(is_tied)
    tl.store(tokens_ptr + row, tl.minimum(token, VOCAB - 1))


def draw_from_all(logits: Tensor, table: Tensor, *, unit: float, num_spare: int) -> Tensor:
    """Draw tokens int64 `[n]`, at most `MOST_ROWS`, from `logits` `[r, V]` in bf16, contiguous both.

    `table` fp64 `[6, n]` is as `DrawSettings.of_table` has it; `unit` is `unit_of(V)`.
    """
    num_rows, vocab = table.shape[1], logits.shape[1]
    assert logits.is_contiguous(), "rows are found by their number"
    assert table.is_contiguous(), "settings are found by their row"
    assert num_rows <= MOST_ROWS, "the plan has groups of that size"
    counts = torch.zeros(MOST_ROWS, _NUM_SCORES.value, dtype=torch.int32, device=logits.device)
    found = torch.empty(num_rows, 2, dtype=torch.int64, device=logits.device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        block = min(4096, triton.next_power_of_2(vocab))
        _count_kernel[(num_rows, triton.cdiv(vocab, block))](
            logits, table, counts, VOCAB=vocab, BLOCK=block, num_warps=8
        )
        _walk_kernel[(num_rows,)](table, counts, found, num_rows, UNIT=unit, SPARE=num_spare, VOCAB=vocab, num_warps=8)
        _pick_kernel[(num_rows,)](logits, table, found, tokens, VOCAB=vocab, BLOCK=block, num_warps=8)
    return tokens
