"""Chooses each row's experts: softmax, top-k and renormalisation in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["num_rows"])
def _choose_kernel(
    logits_ptr,
    chosen_ptr,
    weights_ptr,
    num_rows,
    NUM_EXPERTS: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Give each row a warp, so that no maximum has to cross warps."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    experts = tl.arange(0, BLOCK)
    row_mask, real = (rows < num_rows)[:, None], (experts < NUM_EXPERTS)[None, :]
    logits = tl.load(
        logits_ptr + rows[:, None] * NUM_EXPERTS + experts[None, :], mask=row_mask & real, other=float("-inf")
    ).to(tl.float32)
    shares = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    shares = shares / tl.sum(shares, axis=1)[:, None]
    # NaN compares with nothing: such a row takes its first experts, and its weights stay NaN.
    left = tl.where(real, tl.where(shares == shares, shares, -1.0), -2.0)  # noqa: PLR0124
    winning = experts[None, :] < tl.zeros((ROWS, 1), tl.int32)
    for _ in tl.static_range(NUM_CHOSEN):
        _, best = tl.max(left, axis=1, return_indices=True, return_indices_tie_break_left=True)
        hit = experts[None, :] == best[:, None]
        winning = winning | hit
        left = tl.where(hit, -3.0, left)
    weights = shares / tl.sum(tl.where(winning, shares, 0.0), axis=1)[:, None]
    place = rows[:, None] * NUM_CHOSEN + tl.cumsum(winning.to(tl.int32), axis=1) - 1
    tl.store(chosen_ptr + place, tl.broadcast_to(experts[None, :], (ROWS, BLOCK)), mask=winning & row_mask)
    tl.store(weights_ptr + place, weights.to(weights_ptr.dtype.element_ty), mask=winning & row_mask)


def choose_experts(logits: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """Return the chosen experts int32 `[n, k]` and their weights `[n, k]` in the dtype of the router's logits `[n, E]`.

    The same experts and weights as `stages.qwen3_vl.moe.route`, with two things fixed that it leaves open: of equal
    shares the lower expert wins, and a row's choices stand in ascending order of experts. A row with NaN gets valid
    experts and NaN weights.
    """
    num_rows, num_experts = logits.shape
    if not 0 < num_chosen <= num_experts:
        raise ValueError(f"num_chosen: {num_chosen} of {num_experts} experts cannot be chosen")
    chosen = torch.empty(num_rows, num_chosen, dtype=torch.int32, device=logits.device)
    weights = logits.new_empty(num_rows, num_chosen)
    if num_rows:
        rows = 1 if num_rows < 512 else 4
        _choose_kernel[(triton.cdiv(num_rows, rows),)](
            logits,
            chosen,
            weights,
            num_rows,
            NUM_EXPERTS=num_experts,
            NUM_CHOSEN=num_chosen,
            ROWS=rows,
            BLOCK=triton.next_power_of_2(num_experts),
            num_warps=rows,
        )
    return chosen, weights
