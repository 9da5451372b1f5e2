"""Rows in FP8: of every row, 128 columns share a scale.

A kernel whose rows are multiplied next ends with `store_codes`; for those of others there is `quantise_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from broker_pipeline.artifact_manifest import FP8_BLOCK

BLOCK = tl.constexpr(FP8_BLOCK)
_SIZE = 16 * FP8_BLOCK  # columns of one program
_ROWS_MULTIPLE = 4  # what the library's product wants


@dataclass(frozen=True, slots=True)
class RowCodes:
    """`num_rows` rows as codes float8_e4m3fn `[m, K]` and scales float32 `[ceil(K/128), m]`.

    Rows behind are zero once the rows are written.
    """

    codes: Tensor
    scales: Tensor
    num_rows: int
    dtype: torch.dtype
    """Of the values that were quantised, and of products."""

    def __len__(self) -> int:
        """Return the number of rows without those behind."""
        return self.num_rows

    @classmethod
    def empty(cls, like: Tensor, num_inputs: int, num_padded: int = 0) -> RowCodes:
        """Return room for as many rows as `like` has, of its dtype, and for `num_padded` of them at least."""
        padded = triton.cdiv(max(len(like), num_padded), _ROWS_MULTIPLE) * _ROWS_MULTIPLE
        codes = like.new_empty(padded, num_inputs, dtype=torch.float8_e4m3fn)
        scales = like.new_empty(triton.cdiv(num_inputs, FP8_BLOCK), padded, dtype=torch.float32)
        return cls(codes, scales, len(like), like.dtype)


Rows = Tensor | RowCodes
"""Rows as a product takes them: values `[n, K]`, or codes."""
R = TypeVar("R", bound=Rows)


@triton.jit
def nearest_code(x):
    """Round to the nearest value that e4m3 has, of even codes where two are as near: the cast that follows is exact.

    The cast alone would do on a GPU; the interpreter's is wrong where rounding carries into the exponent.
    """
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    rounded = tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, rounded)  # below 2^-6 all steps are 2^-9
    return tl.where(x == x, rounded, x)  # noqa: PLR0124 - NaN


@triton.jit
def within(columns, WIDTH: tl.constexpr, num_rows):
    """Say which columns of the program's row there are: of rows behind none, whose codes are then zeros."""
    row = tl.program_id(0) + tl.zeros_like(columns)  # a block, which the interpreter's masks must be
    return (columns < WIDTH) & (row < num_rows)


@triton.jit
def store_codes(x, first_block, codes_ptr, scales_ptr, WIDTH: tl.constexpr):
    """Quantise and store `x`, fp32 values `[B * 128]` of the program's row from `first_block` on, zero past its end.

    Axis 0 of the grid are the rows of codes.
    """
    row = tl.program_id(0).to(tl.int64)
    blocks = first_block + tl.arange(0, x.shape[0] // BLOCK)
    columns = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    values = tl.reshape(x, (x.shape[0] // BLOCK, BLOCK))
    scale = tl.maximum(tl.max(tl.abs(values), axis=1) / 448.0, 1.1754943508222875e-38)
    codes = nearest_code(values / scale[:, None]).to(tl.float8e4nv)
    tl.store(scales_ptr + blocks * tl.num_programs(0) + row, scale, mask=blocks * BLOCK < WIDTH)
    tl.store(codes_ptr + row * WIDTH + columns, codes, mask=columns < WIDTH)


@triton.jit(do_not_specialize=["num_rows"])
def _quantise_kernel(x_ptr, codes_ptr, scales_ptr, num_rows, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + row * WIDTH + columns, mask=within(columns, WIDTH, num_rows), other=0.0).to(tl.float32)
    store_codes(x, tl.program_id(1) * (SIZE // BLOCK), codes_ptr, scales_ptr, WIDTH)


def quantise_rows(x: Tensor) -> RowCodes:
    """Return rows `[n, K]` in FP8; the largest value of 128 columns has the largest code. A row with NaN keeps it."""
    num_inputs = x.shape[1]
    out = RowCodes.empty(x, num_inputs)
    if len(out):
        grid = (len(out.codes), triton.cdiv(num_inputs, _SIZE))
        _quantise_kernel[grid](x, out.codes, out.scales, len(out), WIDTH=num_inputs, SIZE=_SIZE, num_warps=4)
    return out
