"""Chooses each row's experts: softmax, top-k and renormalisation in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@triton.jit
def _choose_kernel(
    logits_ptr, chosen_ptr, weights_ptr, NUM_EXPERTS: tl.constexpr, NUM_CHOSEN: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    real = experts < NUM_EXPERTS
    logits = tl.load(logits_ptr + row * NUM_EXPERTS + experts, mask=real, other=float("-inf")).to(tl.float32)
    shares = tl.exp(logits - tl.max(logits))
    shares = tl.where(real, shares / tl.sum(shares), -1.0)
    # The rank of every expert among all, by comparing each with each: no loop of k dependent maxima.
    mine, other = shares[:, None], shares[None, :]
    ahead = (other > mine) | ((other == mine) & (experts[None, :] < experts[:, None]))
    winning = tl.sum(ahead.to(tl.int32), axis=1) < NUM_CHOSEN
    place = row * NUM_CHOSEN + tl.cumsum(winning.to(tl.int32)) - 1
    weights = shares / tl.sum(tl.where(winning, shares, 0.0))
    tl.store(chosen_ptr + place, experts, mask=winning)
    tl.store(weights_ptr + place, weights.to(weights_ptr.dtype.element_ty), mask=winning)


def choose_experts(logits: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """The chosen experts int32 `[n, k]` and their weights `[n, k]` in the dtype of the router's logits `[n, E]`.

    The same experts and weights as `stages.qwen3_vl.moe.route`, with two things fixed that it leaves open: of equal
    shares the lower expert wins, and a row's choices stand in ascending order of experts.
    """
    num_rows, num_experts = logits.shape
    if not 0 < num_chosen <= num_experts:
        raise ValueError(f"num_chosen: {num_chosen} of {num_experts} experts cannot be chosen")
    chosen = torch.empty(num_rows, num_chosen, dtype=torch.int32, device=logits.device)
    weights = logits.new_empty(num_rows, num_chosen)
    if num_rows:
        block = triton.next_power_of_2(num_experts)
        _choose_kernel[(num_rows,)](
            logits, chosen, weights, NUM_EXPERTS=num_experts, NUM_CHOSEN=num_chosen, BLOCK=block, num_warps=4
        )
    return chosen, weights


def choose_experts_reference(logits: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    shares = F.softmax(logits, dim=-1, dtype=torch.float32)
    chosen = shares.sort(dim=-1, descending=True, stable=True).indices[:, :num_chosen].sort(dim=-1).values
    weights = shares.gather(1, chosen)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return chosen.to(torch.int32), weights.to(logits.dtype)
