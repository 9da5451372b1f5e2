"""The experts of a sparse block on the GPU: every chosen expert's MLP for every row, without padding or host reads.

    few rows    pairs (row, choice):  gate_up of each pair ─► down of each pair ─► sum over choices
    more rows   sort pairs by expert ─► gate_up by (block of one expert's pairs, tile) ─► down likewise ─► sum

A value's sum over inputs runs in one order that only the tiling fixes: no split sums, no atomics. So a row's result
depends on its own inputs and on the tiling alone; with `deterministic` one tiling serves every number of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.experts.blocks import sorted_down, sorted_gate_up
from stages.kernels.experts.pairs import pair_down, pair_gate_up
from stages.kernels.experts.routing import choose_experts
from stages.kernels.experts.sort import sort_by_expert
from stages.kernels.experts.tiling import MAX_PAIR_ROWS, PAIR_DOWN, PAIR_GATE_UP, tilings_for
from stages.kernels.matmul import invariant_linear


@triton.jit
def _combine_kernel(
    parts_ptr,
    residual_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    dtype = out_ptr.dtype.element_ty
    summed = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        part = tl.load(parts_ptr + (row * NUM_CHOSEN + choice) * HIDDEN + columns, mask=mask, other=0.0)
        summed = (summed + part.to(tl.float32)).to(dtype).to(tl.float32)
    if HAS_RESIDUAL:
        summed += tl.load(residual_ptr + row * HIDDEN + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * HIDDEN + columns, summed.to(dtype), mask=mask)


def fused_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    residual: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """An `ExpertCompute` on the GPU: the weighted sum `[n, H]` of the chosen experts, plus `residual` `[n, H]` if any.

    `chosen` is int32 or int64 with ids in [0, E). The sum runs in the order of a row's choices, rounded after each, as
    `eager_experts` does in ascending order of experts: `choose_experts` gives the choices in that order. All tensors
    are contiguous.
    """
    if x.shape[0] <= MAX_PAIR_ROWS and not deterministic:
        activated = pair_gate_up(x, chosen, gate_up, PAIR_GATE_UP)
        return pair_down(activated, chosen, weights, down, residual, PAIR_DOWN)
    parts = expert_parts(x, chosen, weights, gate_up, down, deterministic=deterministic)
    return combine(parts, residual)


def expert_parts(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *, deterministic: bool = False
) -> Tensor:
    """What each choice adds to its row, `[n, k, H]`, already weighted; see `fused_experts`."""
    tilings = tilings_for(chosen.numel(), gate_up.shape[0], x.element_size(), deterministic=deterministic)
    order, starts = sort_by_expert(chosen, gate_up.shape[0])
    activated = sorted_gate_up(x, order, starts, gate_up, chosen.shape[1], tilings.gate_up)
    return sorted_down(activated, order, starts, weights, down, tilings.down)


def moe_block(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    num_chosen: int,
    residual: Tensor | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """The experts' half of a sparse block, from normed rows `[n, H]` to `residual + experts` `[n, H]`.

    Shapes: router `[E, H]`, gate_up `[E, 2I, H]`, down `[E, H, I]`. With `deterministic` a row's result depends on
    neither the number nor the contents of the other rows.
    """
    logits = invariant_linear(x, router) if deterministic else F.linear(x, router)
    chosen, weights = choose_experts(logits, num_chosen)
    return fused_experts(x, chosen, weights, gate_up, down, residual=residual, deterministic=deterministic)


def combine(parts: Tensor, residual: Tensor | None) -> Tensor:
    """The sum over choices `[n, H]` of `parts` `[n, k, H]`, in their order, rounded after each; plus the residual."""
    num_rows, num_chosen, hidden = parts.shape
    out = parts.new_empty(num_rows, hidden)
    if num_rows:
        block = min(1024, triton.next_power_of_2(hidden))
        _combine_kernel[(num_rows, triton.cdiv(hidden, block))](
            parts,
            out if residual is None else residual,
            out,
            HIDDEN=hidden,
            NUM_CHOSEN=num_chosen,
            HAS_RESIDUAL=residual is not None,
            BLOCK=block,
            num_warps=4,
        )
    return out
