"""Products of rows and weights that are both in FP8: sums of 128 inputs on tensor cores, times both scales.

Two ways to the same numbers but for the order of sums: the library's, and a kernel for where it refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.kernels.codes.row_codes import RowCodes, quantise_rows
from stages.kernels.skinny_linear import skinny_linear
from stages.kernels.tiling import Tiling
from stages.weights.fp8_matrix import SCALES_MULTIPLE, Fp8Matrix, quantise

BlockProduct = Callable[[RowCodes, Fp8Matrix], Tensor]
"""Rows `[n, K]` times a weight `[N, K]` transposed -> `[n, N]` in the rows' dtype."""

_TILING = Tiling(128, FP8_BLOCK, FP8_BLOCK, num_warps=8, num_stages=4)
_FEWER_ROWS = Tiling(64, FP8_BLOCK, FP8_BLOCK, num_warps=4, num_stages=4)


def kernel_product(rows: RowCodes, weight: Fp8Matrix) -> Tensor:
    """Multiply by a kernel of our own: any sizes, and in the interpreter; see `BlockProduct`."""
    tiling = _TILING if len(rows.codes) > _FEWER_ROWS.block_m else _FEWER_ROWS
    return skinny_linear(rows, weight, tiling)


def library_product(rows: RowCodes, weight: Fp8Matrix) -> Tensor:
    """Multiply by cuBLAS where it takes the sizes, and by `kernel_product` elsewhere; see `BlockProduct`."""
    scales = weight.scales
    if (
        weight.shape[0] % FP8_BLOCK
        or weight.shape[1] % FP8_BLOCK
        or scales.stride(0) % SCALES_MULTIPLE
        or not len(rows)
    ):
        return kernel_product(rows, weight)
    whole = scales.as_strided((len(scales), scales.stride(0)), scales.stride())
    out = F.scaled_mm(
        rows.codes,
        weight.codes.t(),
        rows.scales.t(),
        F.ScalingType.BlockWise1x128,
        whole.t(),
        F.ScalingType.BlockWise128x128,
        output_dtype=rows.dtype,
    )
    return out[: len(rows)]


def has_library_product(device: torch.device) -> bool:
    """Say whether the library multiplies in this way on this device: on Hopper, from CUDA 12.9 on. Tries it once."""
    num_inputs = SCALES_MULTIPLE * FP8_BLOCK
    weight = quantise(torch.ones(FP8_BLOCK, num_inputs, device=device))
    rows = quantise_rows(torch.ones(4, num_inputs, dtype=torch.bfloat16, device=device))
    try:
        found = library_product(rows, weight)
    except (AttributeError, RuntimeError, ValueError):
        return False
    return bool((found == num_inputs).all())
