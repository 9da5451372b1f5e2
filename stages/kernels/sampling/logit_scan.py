"""What every row of logits is asked first: its best token, unless not all of it is finite, or all of it the same."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 8192


@triton.jit
def _scan_kernel(
    logits_ptr, best_ptr, place_ptr, worst_ptr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr
):
    row, chunk = tl.program_id(0), tl.program_id(1)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    mask = columns < WIDTH
    logits = tl.load(logits_ptr + row.to(tl.int64) * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    is_finite = tl.abs(logits) < float("inf")
    comparable = tl.where(mask & is_finite, logits, float("-inf"))
    best, place = tl.max(comparable, axis=0, return_indices=True, return_indices_tie_break_left=True)
    at = row * CHUNKS + chunk
    tl.store(best_ptr + at, best)
    tl.store(place_ptr + at, chunk * CHUNK + place)
    tl.store(worst_ptr + at, tl.min(tl.where(mask, comparable, float("inf")), axis=0))


@triton.jit
def _join_kernel(best_ptr, place_ptr, worst_ptr, greedy_ptr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    chunks = tl.arange(0, BLOCK)
    mask = chunks < CHUNKS
    at = row * CHUNKS + chunks
    best = tl.load(best_ptr + at, mask=mask, other=float("-inf"))
    largest, winner = tl.max(best, axis=0, return_indices=True, return_indices_tie_break_left=True)
    smallest = tl.min(tl.load(worst_ptr + at, mask=mask, other=float("inf")), axis=0)
    places = tl.load(place_ptr + at, mask=mask, other=0)
    greedy = tl.sum(tl.where(chunks == winner, places, 0), axis=0)
    greedy = tl.where(smallest == largest, -2, greedy)
    greedy = tl.where(smallest == float("-inf"), -1, greedy)
    tl.store(greedy_ptr + row, greedy.to(tl.int64))


def scan(logits: Tensor) -> Tensor:
    """Return the lowest id of the largest logit of `[r, V]`, int64 `[r]`.

    Where not all are finite it is -1, where all are the same number -2.
    """
    num_rows, width = logits.shape
    chunks = triton.cdiv(width, _CHUNK)
    device = logits.device
    best = torch.empty(num_rows, chunks, dtype=torch.float32, device=device)
    place = torch.empty(num_rows, chunks, dtype=torch.int32, device=device)
    worst = torch.empty(num_rows, chunks, dtype=torch.float32, device=device)
    greedy = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows:
        _scan_kernel[(num_rows, chunks)](
            logits, best, place, worst, WIDTH=width, CHUNKS=chunks, CHUNK=_CHUNK, num_warps=8
        )
        _join_kernel[(num_rows,)](
            best, place, worst, greedy, CHUNKS=chunks, BLOCK=triton.next_power_of_2(chunks), num_warps=1
        )
    return greedy
