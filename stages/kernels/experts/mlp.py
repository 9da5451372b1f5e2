"""The experts of a sparse block on the GPU: every chosen expert's MLP for every row, without padding or host reads.

    few rows    pairs (row, choice):  gate_up of each pair ─► down of each pair ─► sum over choices
    more rows   sort pairs by expert ─► gate_up by (block of one expert's pairs, tile) ─► down likewise

A value's sum over inputs runs in one order that only the tiling fixes: no split sums, no atomics. So a row's result
depends on its own inputs and on the tiling alone. With `deterministic` all rows are sorted, since the tilings for these
add up bf16 in one order (see `kernels.matmul`). Codes of FP8 are added up in blocks: one tiling serves any number.
"""

from __future__ import annotations

from torch import Tensor

from stages.kernels.codes.row_codes import quantise_rows
from stages.kernels.experts.blocks import sorted_down, sorted_gate_up
from stages.kernels.experts.pairs import pair_down, pair_gate_up
from stages.kernels.experts.sort import sort_by_expert
from stages.kernels.experts.tiling import (
    FP8_PAIR_DOWN,
    FP8_PAIR_GATE_UP,
    MAX_PAIR_ROWS,
    PAIR_DOWN,
    PAIR_GATE_UP,
    ExpertTilings,
    fp8_tilings_for,
    tilings_for,
)
from stages.weights.fp8_matrix import Fp8Matrix, Weight


def fused_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Weight,
    down: Weight,
    *,
    deterministic: bool = False,
    rows_in_fp8: bool = False,
) -> Tensor:
    """Return what the chosen experts add to rows `x` `[n, H]`: of few rows `[n, H]`, else `[n, k, H]`, to be summed.

    Shapes: chosen `[n, k]` int32 or int64 with ids in [0, E), weights `[n, k]`, gate_up `[E, 2I, H]`, down `[E, H, I]`,
    all contiguous. Few rows are summed in the order of their choices, rounded after each, as `eager_experts` does in
    ascending order of experts: `choose_experts` gives the choices in that order.

    Of experts in FP8 the codes are read and multiplied in x's dtype; with `rows_in_fp8` more than a few rows are
    quantised before each product.
    """
    if x.shape[0] <= MAX_PAIR_ROWS and not deterministic:
        tiling = FP8_PAIR_GATE_UP if isinstance(gate_up, Fp8Matrix) else PAIR_GATE_UP
        activated = pair_gate_up(x, chosen, gate_up, tiling)
        return pair_down(activated, chosen, weights, down, FP8_PAIR_DOWN if isinstance(down, Fp8Matrix) else PAIR_DOWN)
    order, starts = sort_by_expert(chosen, gate_up.shape[0])
    if rows_in_fp8 and not deterministic and (coded := tilings_in_fp8(x, chosen.numel(), gate_up, down)):
        rows, num_chosen = quantise_rows(x), chosen.shape[1]
        activated = sorted_gate_up(rows, order, starts, gate_up, num_chosen, coded.gate_up)
        return sorted_down(quantise_rows(activated), order, starts, weights, down, coded.down)
    is_fixed = deterministic and isinstance(gate_up, Fp8Matrix)
    tilings = tilings_for(chosen.numel(), gate_up.shape[0], x.element_size(), is_fixed=is_fixed)
    activated = sorted_gate_up(x, order, starts, gate_up, chosen.shape[1], tilings.gate_up)
    return sorted_down(activated, order, starts, weights, down, tilings.down)


def tilings_in_fp8(x: Tensor, num_pairs: int, gate_up: Weight, down: Weight) -> ExpertTilings | None:
    """Return the cut where both matrices are in FP8, and rows are not in float32; else None."""
    in_fp8 = isinstance(gate_up, Fp8Matrix) and isinstance(down, Fp8Matrix) and x.element_size() == 2
    return fp8_tilings_for(num_pairs, gate_up.shape[0]) if in_fp8 else None
