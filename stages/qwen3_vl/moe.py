"""Mixture of experts: the router, and the experts behind a seam.

`ExpertCompute` is the seam: `eager_experts` below sums in ascending order of experts in the activation dtype, which is
bit-identical to the reference implementation's eager mode. On a GPU `stages.kernels.experts.mlp` takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Linear = Callable[[Tensor, Tensor], Tensor]
"""The product of `[n, in]` with `[out, in]`: `torch.nn.functional.linear`, or one that is batch-invariant."""


class ExpertCompute(Protocol):
    """Computes the weighted sum of the chosen experts for every row."""

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        """Shapes: x `[n, H]`, chosen int64 `[n, k]`, weights `[n, k]`, gate_up `[E, 2I, H]`, down `[E, H, I]`."""


def route(x: Tensor, router: Tensor, num_chosen: int, linear: Linear = F.linear) -> tuple[Tensor, Tensor]:
    """Return chosen experts int64 `[n, k]` and their weights `[n, k]` in x's dtype, which sum to 1 before rounding.

    The softmax over all experts and the renormalisation run in fp32.
    """
    logits = linear(x, router)
    weights, chosen = F.softmax(logits, dim=-1, dtype=torch.float32).topk(num_chosen, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return chosen, weights.to(logits.dtype)


def eager_experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Compute one expert after the other, in ascending order; reads the routing back to the host."""
    summed = torch.zeros_like(x)
    slots_of_rows = chosen.T  # [k, n]: rows of one expert come in the order of (choice, row)
    for expert in torch.bincount(chosen.flatten()).nonzero().flatten().tolist():
        choice, row = torch.where(slots_of_rows == expert)
        gate, up = F.linear(x[row], gate_up[expert]).chunk(2, dim=-1)
        contribution = F.linear(F.silu(gate) * up, down[expert]) * weights[row, choice, None]
        summed.index_add_(0, row, contribution)
    return summed
