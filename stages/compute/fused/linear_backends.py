"""The matrix products of the decoder on a GPU: the fastest, or those that are batch-invariant."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from stages.kernels.activation import silu_mul
from stages.kernels.matmul import invariant_linear
from stages.kernels.skinny_linear import MOST_FEW_ROWS, few_rows_gated, few_rows_linear


class LinearBackend(Protocol):
    """Rows `[n, in]` times matrices `[out, in]`."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the product `[n, out]`."""

    def linear_into(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """Write the product into `out`."""

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """Return `silu(gate) * up` `[n, I]` for gate and up one above the other, `[2I, in]`."""


class FastLinear:
    """The fastest for each number of rows, so that a row's last digits depend on how many there are."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `LinearBackend`."""
        return few_rows_linear(x, weight)

    def linear_into(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """See `LinearBackend`."""
        if len(x) > MOST_FEW_ROWS:
            torch.mm(x, weight.t(), out=out)
        else:
            out.copy_(few_rows_linear(x, weight))

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """See `LinearBackend`."""
        return few_rows_gated(x, gate_up)


class BatchInvariantLinear:
    """One way to add up for any number of rows: slower, and a row's result is its own."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """See `LinearBackend`."""
        return invariant_linear(x, weight)

    def linear_into(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """See `LinearBackend`."""
        out.copy_(invariant_linear(x, weight))

    def gated(self, x: Tensor, gate_up: Tensor) -> Tensor:
        """See `LinearBackend`."""
        return silu_mul(invariant_linear(x, gate_up))
