"""The matrix products of the decoder on a GPU: the fastest, or those that are batch-invariant."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.compute.fused.proven_products import ProvenProducts
from stages.compute.options import Fp8Product
from stages.kernels.activation import silu_mul
from stages.kernels.codes.row_codes import RowCodes, Rows, quantise_rows
from stages.kernels.fp8.block_products import BlockProduct, has_library_product, kernel_product, library_product
from stages.kernels.fp8.linear import (
    MOST_FP8_FEW_ROWS,
    few_rows_fp8_gated,
    fp8_linear,
    invariant_fp8_linear,
    takes_codes,
)
from stages.kernels.matmul import invariant_linear
from stages.kernels.skinny_linear import MOST_FEW_ROWS, few_rows_gated, few_rows_linear
from stages.weights.fp8_matrix import Fp8Matrix, Weight


class LinearBackend(Protocol):
    """Rows `[n, in]` times matrices `[out, in]`."""

    def rows_for(self, like: Tensor, weight: Weight) -> Rows:
        """Return room for what `linear` multiplies by `weight`, of as many rows as `like` has, in its dtype.

        That is `[n, in]`, or codes where rows would be quantised: whatever computes the rows writes them so.
        """

    def linear(self, x: Rows, weight: Weight) -> Tensor:
        """Return the product `[n, out]` of values, or of what was written to `rows_for` this weight."""

    def linear_into(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """Write the product into `out`."""

    def gated(self, x: Rows, gate_up: Weight, down: Weight) -> Rows:
        """Return `silu(gate) * up` for gate and up one above the other, `[2I, in]`: rows for `linear` with `down`."""


class FastLinear:
    """The fastest for each number of rows, so that a row's last digits depend on how many there are."""

    def __init__(self, fp8_product: BlockProduct | None = None) -> None:
        """Multiply many rows and weights in FP8 by `fp8_product`; None multiplies them by codes, in the rows' dtype."""
        self._fp8_product = fp8_product

    def rows_for(self, like: Tensor, weight: Weight) -> Rows:
        """See `LinearBackend`."""
        if isinstance(weight, Fp8Matrix) and takes_codes(like, weight, self._fp8_product):
            return RowCodes.empty(like, weight.shape[1])
        return like.new_empty(len(like), weight.shape[1])

    def linear(self, x: Rows, weight: Weight) -> Tensor:
        """See `LinearBackend`."""
        if isinstance(weight, Fp8Matrix):
            return fp8_linear(x, weight, self._fp8_product)
        return few_rows_linear(_values(x), weight)

    def linear_into(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """See `LinearBackend`."""
        if len(x) > MOST_FEW_ROWS:
            torch.mm(x, weight.t(), out=out)
        else:
            out.copy_(few_rows_linear(x, weight))

    def gated(self, x: Rows, gate_up: Weight, down: Weight) -> Rows:
        """See `LinearBackend`."""
        if not isinstance(gate_up, Fp8Matrix):
            return few_rows_gated(_values(x), gate_up)
        if isinstance(x, Tensor) and len(x) <= MOST_FP8_FEW_ROWS:
            return few_rows_fp8_gated(x, gate_up)
        both = self.linear(x, gate_up)
        return silu_mul(both, self.rows_for(both, down))


class BatchInvariantLinear:
    """One way to add up for any number of rows, so that a row's result is its own."""

    def __init__(
        self, dense: ProvenProducts[Tensor], coded: ProvenProducts[Fp8Matrix], fp8_product: BlockProduct | None
    ) -> None:
        """Have the library multiply where it is proven that a row has the same bits in each of its products.

        `coded` is of weights in FP8, and of `fp8_product`.
        """
        self._dense = dense
        self._coded = coded
        self._fp8_product = fp8_product

    def rows_for(self, like: Tensor, weight: Weight) -> Rows:
        """See `LinearBackend`; codes are padded to a proven size, and more rows than the largest are no codes yet."""
        if isinstance(weight, Fp8Matrix) and (size := self._coded.size_for(len(like), weight)):
            return RowCodes.empty(like, weight.shape[1], size)
        return like.new_empty(len(like), weight.shape[1])

    def linear(self, x: Rows, weight: Weight) -> Tensor:
        """See `LinearBackend`."""
        if not isinstance(weight, Fp8Matrix):
            found = self._dense.linear(_values(x), weight)
            return invariant_linear(_values(x), weight) if found is None else found
        if isinstance(x, RowCodes):
            return fp8_linear(x, weight, self._fp8_product)
        found = self._coded.linear(x, weight)
        return invariant_fp8_linear(x, weight) if found is None else found

    def linear_into(self, out: Tensor, x: Tensor, weight: Tensor) -> None:
        """See `LinearBackend`."""
        if self._dense.size_for(len(x), weight) == len(x):
            torch.mm(x, weight.t(), out=out)
        else:
            out.copy_(self.linear(x, weight))

    def gated(self, x: Rows, gate_up: Weight, down: Weight) -> Rows:
        """See `LinearBackend`."""
        both = self.linear(x, gate_up)
        return silu_mul(both, self.rows_for(both, down))


def prove_linears(
    weights: Sequence[Weight], sizes: Sequence[int], fp8_product: BlockProduct | None
) -> BatchInvariantLinear:
    """Return batch-invariant products, by the library for those `sizes` of which it is seen here that they are."""
    dense = ProvenProducts[Tensor](_library_linear)
    dense.prove([weight for weight in weights if isinstance(weight, Tensor)], sizes, invariant_linear)
    in_fp8 = partial(_of_rows_in_fp8, fp8_product)
    coded = ProvenProducts[Fp8Matrix](in_fp8, is_alone=True)
    if fp8_product is not None:
        coded.prove([weight for weight in weights if isinstance(weight, Fp8Matrix)], sizes, in_fp8)
    return BatchInvariantLinear(dense, coded, fp8_product)


def _values(x: Rows) -> Tensor:
    assert isinstance(x, Tensor), "codes are for weights in FP8"
    return x


def _library_linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


def _of_rows_in_fp8(product: BlockProduct | None, x: Tensor, weight: Fp8Matrix) -> Tensor:
    assert product is not None, "nothing is proven without one"
    return product(quantise_rows(x), weight)


def choose_fp8_product(name: Fp8Product, device: torch.device) -> BlockProduct | None:
    """Return what multiplies many rows and weights in FP8; "auto" is the library where it can. None: by codes alone."""
    if name == "weight-only":
        return None
    is_library = name == "library" or (name == "auto" and has_library_product(device))
    return library_product if is_library else kernel_product


def has_fp8_numbers(device: torch.device) -> bool:
    """Say whether a GPU converts FP8 codes: from Ada and Hopper on. Older ones get values instead."""
    return torch.cuda.get_device_capability(device) >= (8, 9)
