"""Products of rows in 16 bits and weights in FP8, by what is fastest for the number of rows.

few rows    bound by bytes: codes are read and multiplied in the rows' dtype      `skinny_linear`
many rows   bound by arithmetic: rows in FP8 too, tensor cores at twice the rate  `block_products`
"""

from __future__ import annotations

from torch import Tensor

from stages.kernels.activation import silu_mul
from stages.kernels.fp8.block_products import BlockProduct
from stages.kernels.fp8.row_codes import quantise_rows
from stages.kernels.skinny_linear import skinny_linear
from stages.kernels.tiling import Tiling
from stages.weights.fp8_matrix import Fp8Matrix

MOST_FP8_FEW_ROWS = 64
"""Above, rows are worth quantising."""
_FEW_GATED_ROWS = 16
_BROAD_FROM = 5120
_NARROW = Tiling(16, 32, 128, num_stages=8)
_BROAD = Tiling(16, 64, 128, num_stages=5, swap=True)
_MORE_ROWS = Tiling(64, 64, 128, swap=True)
_MANY_ROWS = Tiling(128, 128, 128, num_warps=8, num_stages=3)
_WIDE = Tiling(16, 32, 32, num_stages=2)  # fp32, without tensor cores
_INVARIANT = (
    (16, Tiling(16, 32, 128)),
    (64, Tiling(64, 32, 128)),
    (384, Tiling(64, 64, 128)),
    (1 << 62, _MANY_ROWS),
)


def fp8_linear(x: Tensor, weight: Fp8Matrix, product: BlockProduct | None) -> Tensor:
    """Multiply `x` `[n, K]` by `weight` `[N, K]` transposed, `[n, N]`; without `product` rows are never quantised."""
    if product is not None and x.shape[0] > MOST_FP8_FEW_ROWS and x.element_size() == 2:
        return product(quantise_rows(x), weight, x.dtype)
    return skinny_linear(x, weight, _tiling(x, weight.shape[0]))


def fp8_gated(x: Tensor, gate_up: Fp8Matrix, product: BlockProduct | None) -> Tensor:
    """Return `silu(gate) * up` `[n, I]` of rows `[n, H]` and `gate_up` `[2I, H]`."""
    if x.shape[0] > _FEW_GATED_ROWS:
        return silu_mul(fp8_linear(x, gate_up, product))
    return skinny_linear(x, gate_up, _tiling(x, gate_up.shape[0] // 2), gated=True)


def invariant_fp8_linear(x: Tensor, weight: Fp8Matrix) -> Tensor:
    """Multiply likewise, by codes alone, so that a row's result depends on that row alone: see `invariant_linear`.

    Sums of 128 inputs are scaled and added up in one order for any number of rows.
    """
    if x.element_size() > 2:
        return skinny_linear(x, weight, _WIDE)
    return skinny_linear(x, weight, next(tiling for most_rows, tiling in _INVARIANT if x.shape[0] <= most_rows))


def _tiling(x: Tensor, num_outputs: int) -> Tiling:
    if x.element_size() > 2:
        return _WIDE
    if x.shape[0] <= _NARROW.block_m:
        return _BROAD if num_outputs >= _BROAD_FROM else _NARROW
    return _MORE_ROWS if x.shape[0] <= MOST_FP8_FEW_ROWS else _MANY_ROWS
