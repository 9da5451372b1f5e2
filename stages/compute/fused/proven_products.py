"""The library's products for `--deterministic`: those of which it was seen that a row has the same bits in each.

    rows of a product     16   |  64  | 128  | 256  | 320 | 512 | … | 4096      sizes that occur
    same bits as ours     no   |  no  |  no  |  no  | yes | yes | … | yes       of 4,096 outputs of 12,288 inputs
    what multiplies       ours | ours | ours |   library, of 320    | …

cuBLAS chooses a kernel by the number of rows. Those that do not split a sum add up its inputs 16 at a time from the
first to the last, as `kernels.matmul.invariant_linear` does, and then every bit is the same; those that split it differ
in half a percent of the values. So sizes are tried when a stage is loaded, and taken where nothing differs. That a
library's choice by size is what makes results depend on their company is well told in "Defeating Nondeterminism in LLM
Inference" (Thinking Machines Lab, 2025).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.weights.fp8_matrix import Fp8Matrix

W = TypeVar("W", Tensor, Fp8Matrix)
Product: TypeAlias = Callable[[Tensor, W], Tensor]
"""Rows `[n, K]` times a weight `[N, K]` transposed -> `[n, N]`."""

_SEED = 7
_MOST_VALUES = 1 << 27
"""Of one product that is tried."""
_FEWEST_VALUES = 1 << 20
"""That are compared: another order of sums changes one of 5,000 in FP8, one of 200 in bf16."""
_MOST_PADDING = 1.5
"""Times its rows a product may have where another kernel needs no padding: more would take longer than that one."""
_FEW = 64
"""Rows that hardly cost more than one."""


class ProvenProducts(Generic[W]):
    """Which numbers of rows a product may have, by the shape of the weight."""

    def __init__(self, product: Product[W], *, is_alone: bool = False) -> None:
        """`is_alone`: no other kernel has these bits, so that a weight has all its rows multiplied so, or none."""
        self._product: Product[W] = product
        self._is_alone = is_alone
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}

    def prove(self, weights: Iterable[W], sizes: Sequence[int], exact: Product[W]) -> None:
        """Try `sizes` with one weight of each shape against `exact`, which is batch-invariant. Waits for the device."""
        for weight in weights:
            if tuple(weight.shape) not in self._sizes:
                found = self._equal_sizes(weight, sorted(set(sizes)), exact)
                is_usable = not self._is_alone or any(size <= _FEW for size in found)
                self._sizes[tuple(weight.shape)] = found if is_usable else ()

    def size_for(self, num_rows: int, weight: W) -> int | None:
        """Return the number of rows that so many are padded to; None if the product is not for them."""
        sizes = self._sizes.get(tuple(weight.shape), ())
        index = bisect.bisect_left(sizes, num_rows)
        if index == len(sizes):
            return None
        return sizes[index] if self._is_alone or sizes[index] <= _MOST_PADDING * num_rows else None

    def linear(self, x: Tensor, weight: W) -> Tensor | None:
        """Multiply `x` `[n, K]`, padded to a proven size; returns `[n, N]`, or None where there is no such size."""
        sizes, num_rows = self._sizes.get(tuple(weight.shape), ()), len(x)
        if sizes and num_rows > sizes[-1]:
            parts = [self.linear(part, weight) for part in torch.split(x, sizes[-1])]
            known = [part for part in parts if part is not None]
            return torch.cat(known) if len(known) == len(parts) else None
        size = self.size_for(num_rows, weight)
        if size is None:
            return None
        padded = F.pad(x, (0, 0, 0, size - num_rows)) if num_rows < size else x
        product: Tensor = self._product(padded, weight)
        return product[:num_rows]

    def _equal_sizes(self, weight: W, sizes: Sequence[int], exact: Product[W]) -> tuple[int, ...]:
        width, num_inputs = weight.shape
        tried = [size for size in sizes if size * width <= _MOST_VALUES]
        device = weight.device if isinstance(weight, Tensor) else weight.codes.device
        dtype = weight.dtype if isinstance(weight, Tensor) else torch.bfloat16
        chance = torch.Generator(device).manual_seed(_SEED)
        rows = torch.randn(tried[-1], num_inputs, generator=chance, device=device).to(dtype)
        wanted = exact(rows, weight)
        num_rows = -(-_FEWEST_VALUES // width)
        return tuple(size for size in tried if self._is_equal(rows, weight, wanted, size, max(num_rows, size)))

    def _is_equal(self, rows: Tensor, weight: W, wanted: Tensor, size: int, num_rows: int) -> bool:
        """Try a size with one piece of the rows after the other, up to `num_rows` of them."""
        return all(
            torch.equal(self._product(rows[first : first + size], weight), wanted[first : first + size])
            for first in range(0, min(num_rows, len(rows) - size + 1), size)
        )
