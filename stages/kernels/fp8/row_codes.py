"""Activations in FP8: of every row, 128 columns share a scale."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.kernels.scaled_step import BLOCK, RowCodes

_BLOCKS = 16  # of one program
_ROWS_MULTIPLE = 4  # what the library's product wants


@triton.jit
def _nearest_code(x):
    """Round to the nearest value that e4m3 has, of even codes where two are as near: the cast that follows is exact.

    The cast alone would do on a GPU; the interpreter's is wrong where rounding carries into the exponent.
    """
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    rounded = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, rounded)  # below 2^-6 all steps are 2^-9
    return tl.where(x == x, rounded, x)  # noqa: PLR0124 - NaN


@triton.jit(do_not_specialize=["num_rows"])
def _quantise_kernel(x_ptr, codes_ptr, scales_ptr, num_rows, NUM_INPUTS: tl.constexpr, BLOCKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    num_padded = tl.num_programs(0)
    num_blocks: tl.constexpr = (NUM_INPUTS + BLOCK - 1) // BLOCK
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inputs = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = inputs < NUM_INPUTS
    is_real = row + tl.zeros((BLOCKS, 1), tl.int64) < num_rows  # a block, which the interpreter's masks must be
    x = tl.load(x_ptr + row * NUM_INPUTS + inputs, mask=inside & is_real, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=1) / 448.0, 1.1754943508222875e-38)
    tl.store(scales_ptr + blocks * num_padded + row, scale, mask=blocks < num_blocks)
    codes = _nearest_code(x / scale[:, None]).to(tl.float8e4nv)
    tl.store(codes_ptr + row * NUM_INPUTS + inputs, codes, mask=inside)


def quantise_rows(x: Tensor) -> RowCodes:
    """Return rows `[n, K]` in FP8; the largest value of 128 columns has the largest code. A row with NaN keeps it."""
    num_rows, num_inputs = x.shape
    num_padded = triton.cdiv(num_rows, _ROWS_MULTIPLE) * _ROWS_MULTIPLE
    num_blocks = triton.cdiv(num_inputs, FP8_BLOCK)
    codes = torch.empty(num_padded, num_inputs, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_blocks, num_padded, device=x.device)
    if num_rows:
        _quantise_kernel[(num_padded, triton.cdiv(num_blocks, _BLOCKS))](
            x, codes, scales, num_rows, NUM_INPUTS=num_inputs, BLOCKS=_BLOCKS, num_warps=4
        )
    return RowCodes(codes, scales, num_rows)
