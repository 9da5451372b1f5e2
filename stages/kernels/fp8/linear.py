"""Products of rows in 16 bits and weights in FP8, by what is fastest for the number of rows.

one row     bound by bytes: codes are read and multiplied by the row in float32   `row_linear`
few rows    likewise, in the rows' dtype on tensor cores                          `skinny_linear`
many rows   bound by arithmetic: rows in FP8 too, tensor cores at twice the rate  `block_products`
"""

from __future__ import annotations

from torch import Tensor

from stages.kernels.codes.row_codes import RowCodes, Rows, quantise_rows
from stages.kernels.fp8.block_products import BlockProduct
from stages.kernels.skinny_linear import row_linear, skinny_linear
from stages.kernels.tiling import RowTiling, Tiling
from stages.weights.fp8_matrix import Fp8Matrix

MOST_FP8_FEW_ROWS = 16
"""Above, rows are worth quantising: `python -m trials.bench.fp8_products` on an H100."""
MOST_FP8_FEW_INPUTS = 8192
"""Above, sums are long and outputs few: too few tiles to read the codes at the memory's rate."""
_ROW = RowTiling(1, 1024)
"""By a sweep on an H200, without loads ahead: those of single bytes (`num_stages`) made it up to ten times slower."""
_FEW_ROWS = Tiling(16, 32, 128)
_MANY_ROWS = Tiling(128, 128, 128, num_warps=8, num_stages=3)
_WIDE = Tiling(16, 32, 32, num_stages=2)  # fp32, without tensor cores
_INVARIANT = Tiling(64, 32, 128)
"""For any number of rows: unlike those of bf16, sums of codes differ by tiles (8B on an H100, 7 rows and 300)."""


def takes_codes(like: Tensor, weight: Fp8Matrix, product: BlockProduct | None) -> bool:
    """Say whether as many rows as `like` has, of its dtype, are quantised to be multiplied; never without `product`."""
    are_few = len(like) <= (MOST_FP8_FEW_ROWS if weight.shape[1] <= MOST_FP8_FEW_INPUTS else 1)
    return product is not None and not are_few and like.element_size() == 2


def fp8_linear(x: Rows, weight: Fp8Matrix, product: BlockProduct | None) -> Tensor:
    """Multiply `x` `[n, K]` by `weight` `[N, K]` transposed, `[n, N]`; rows that `takes_codes` may be codes already."""
    if isinstance(x, Tensor) and not takes_codes(x, weight, product):
        return _by_codes(x, weight)
    assert product is not None, "codes are for one"
    return product(x if isinstance(x, RowCodes) else quantise_rows(x), weight)


def few_rows_fp8_gated(x: Tensor, gate_up: Fp8Matrix) -> Tensor:
    """Return `silu(gate) * up` `[n, I]` of a few rows `[n, H]` and `gate_up` `[2I, H]`."""
    return _by_codes(x, gate_up, gated=True)


def invariant_fp8_linear(x: Tensor, weight: Fp8Matrix) -> Tensor:
    """Multiply likewise, by codes alone, so that a row's result depends on that row alone: see `invariant_linear`.

    Sums of 128 inputs are scaled and added up by one tiling for any number of rows.
    """
    return skinny_linear(x, weight, _WIDE if x.element_size() > 2 else _INVARIANT)


def _by_codes(x: Tensor, weight: Fp8Matrix, *, gated: bool = False) -> Tensor:
    if len(x) == 1:
        return row_linear(x, weight, _ROW, gated=gated)
    if x.element_size() > 2:
        return skinny_linear(x, weight, _WIDE, gated=gated)
    return skinny_linear(x, weight, _FEW_ROWS if len(x) <= MOST_FP8_FEW_ROWS else _MANY_ROWS, gated=gated)
