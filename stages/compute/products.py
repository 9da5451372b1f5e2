"""The matrix products of the decoder on a card: which kernel for how many rows.

    1 row          every weight is read once and met by one number: no tensor cores, wide loads
    up to 16       the narrow side of a tensor core's tile
    more           the library's

The first two were measured to beat the library by 10 and 6 % of a decode step (`docs/benchmarks.md`).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.activation import silu_mul
from stages.kernels.matmul import invariant_linear
from stages.kernels.skinny_linear import RowTiling, SkinnyTiling, row_linear, skinny_linear

_ONE_ROW = RowTiling(4, 1024, 4, 3)
_FEW_ROWS = SkinnyTiling(16, 32, 256, 4, 4)
_MOST_FEW_ROWS = 16


class Products(Protocol):
    """Rows `[n, in]` times matrices `[out, in]`."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """The product `[n, out]`."""

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """`silu(gate) * up` `[n, I]` for gate and up one above the other, `[2I, in]`."""


class FastProducts:
    """The fastest for each number of rows, so that a row's last digits depend on how many there are."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Products`."""
        if len(x) == 1:
            return row_linear(x, weight, _ONE_ROW)
        return skinny_linear(x, weight, _FEW_ROWS) if len(x) <= _MOST_FEW_ROWS else F.linear(x, weight)

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """See `Products`."""
        if len(x) == 1:
            return row_linear(x, gate_up, _ONE_ROW, gated=True)
        if len(x) <= _MOST_FEW_ROWS:
            return skinny_linear(x, gate_up, _FEW_ROWS, gated=True)
        return silu_mul(F.linear(x, gate_up))


class InvariantProducts:
    """One way to add up for any number of rows: slower, and a row's result is its own."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `Products`."""
        return invariant_linear(x, weight)

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """See `Products`."""
        return silu_mul(invariant_linear(x, gate_up))
