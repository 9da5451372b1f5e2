"""Products of rows and weights that are both in FP8: sums of 128 inputs on tensor cores, times both scales.

Two ways to the same numbers but for the order of sums: the library's, and a kernel for where it refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.kernels.fp8.row_codes import RowCodes, quantise_rows
from stages.kernels.scaled_step import BLOCK
from stages.kernels.tiling import Tiling
from stages.weights.fp8_matrix import Fp8Matrix, quantise

BlockProduct = Callable[[RowCodes, Fp8Matrix, torch.dtype], Tensor]
"""Rows `[n, K]` times a weight `[N, K]` transposed -> `[n, N]` of a dtype."""

_TILING = Tiling(128, FP8_BLOCK, FP8_BLOCK, num_warps=8, num_stages=4)
_FEWER_ROWS = Tiling(64, FP8_BLOCK, FP8_BLOCK, num_warps=4, num_stages=4)
_LIBRARY_MULTIPLE = 512
"""Inputs: the library reads weights' scales four at a time."""


@triton.jit(do_not_specialize=["num_rows", "num_padded"])
def _product_kernel(
    codes_ptr,
    row_scales_ptr,
    weight_ptr,
    scales_ptr,
    out_ptr,
    num_rows,
    num_padded,
    WIDTH: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    num_row_blocks = tl.cdiv(num_rows, BLOCK_M)
    program = tl.program_id(0)  # row blocks of one tile of weights are neighbours
    rows = (program % num_row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    column_block = program // num_row_blocks
    columns = column_block * BLOCK + tl.arange(0, BLOCK)
    inputs = tl.arange(0, BLOCK)
    row_mask, column_mask = rows < num_rows, columns < WIDTH
    num_blocks: tl.constexpr = (NUM_INPUTS + BLOCK - 1) // BLOCK
    x_tile = codes_ptr + rows.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    weight_tile = weight_ptr + columns.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    scales = scales_ptr + column_block * num_blocks
    total = tl.zeros((BLOCK_M, BLOCK), tl.float32)
    for index in range(num_blocks):
        inside = index * BLOCK + inputs < NUM_INPUTS
        x = tl.load(x_tile + index * BLOCK, mask=row_mask[:, None] & inside[None, :], other=0.0)
        weight = tl.load(weight_tile + index * BLOCK, mask=column_mask[:, None] & inside[None, :], other=0.0)
        row_scale = tl.load(row_scales_ptr + index * num_padded + rows, mask=row_mask, other=0.0)
        total += tl.dot(x, tl.trans(weight)) * (row_scale * tl.load(scales + index))[:, None]
    mask = row_mask[:, None] & column_mask[None, :]
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], out, mask=mask)


def kernel_product(rows: RowCodes, weight: Fp8Matrix, dtype: torch.dtype) -> Tensor:
    """Multiply by a kernel of our own: any sizes, and in the interpreter; see `BlockProduct`."""
    tiling, width = _TILING if rows.num_rows > _FEWER_ROWS.block_m else _FEWER_ROWS, weight.shape[0]
    out = torch.empty(rows.num_rows, width, dtype=dtype, device=rows.codes.device)
    if rows.num_rows:
        grid = (triton.cdiv(rows.num_rows, tiling.block_m) * triton.cdiv(width, tiling.block_n),)
        _product_kernel[grid](
            rows.codes,
            rows.scales,
            weight.codes,
            weight.scales,
            out,
            rows.num_rows,
            rows.codes.shape[0],
            WIDTH=width,
            NUM_INPUTS=weight.shape[1],
            BLOCK_M=tiling.block_m,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
    return out


def library_product(rows: RowCodes, weight: Fp8Matrix, dtype: torch.dtype) -> Tensor:
    """Multiply by cuBLAS where it takes the sizes, and by `kernel_product` elsewhere; see `BlockProduct`."""
    if weight.shape[0] % FP8_BLOCK or weight.shape[1] % _LIBRARY_MULTIPLE or not rows.num_rows:
        return kernel_product(rows, weight, dtype)
    out = F.scaled_mm(
        rows.codes,
        weight.codes.t(),
        rows.scales.t(),
        F.ScalingType.BlockWise1x128,
        weight.scales.t(),
        F.ScalingType.BlockWise128x128,
        output_dtype=dtype,
    )
    return out[: rows.num_rows]


def has_library_product(device: torch.device) -> bool:
    """Say whether the library multiplies in this way on this device: on Hopper, from CUDA 12.9 on. Tries it once."""
    weight = quantise(torch.ones(FP8_BLOCK, _LIBRARY_MULTIPLE, device=device))
    rows = quantise_rows(torch.ones(4, _LIBRARY_MULTIPLE, dtype=torch.bfloat16, device=device))
    try:
        found = library_product(rows, weight, torch.bfloat16)
    except (AttributeError, RuntimeError, ValueError):
        return False
    return bool((found == _LIBRARY_MULTIPLE).all())
