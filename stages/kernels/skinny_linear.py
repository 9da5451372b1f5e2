"""Matrix products of few rows, which read every weight once: bound by memory, not by arithmetic.

One row multiplies without tensor cores; more rows fill the narrow side of a tensor core's tile. With `gated` the weight
holds a gate's outputs and then as many of an up projection, and the activation between is applied to the sums before
they leave the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.kernels.activation import activate, silu_mul
from stages.kernels.codes.row_codes import BLOCK, Rows
from stages.kernels.codes.scaled_step import add_product, row_operands, weight_operands
from stages.kernels.tiling import RowTiling, Tiling
from stages.weights.fp8_matrix import Weight

_ROW = RowTiling(4, 1024, num_stages=3)
_NARROW = Tiling(16, 32, 256)  # few outputs: small tiles, so that every multiprocessor has one
_BROAD = Tiling(16, 64, 128, swap=True)
_MORE_ROWS = Tiling(64, 32, 128)
_BROAD_FROM = 5120
MOST_FEW_ROWS = 16
"""Above, the library's product is as fast."""


@triton.jit
def _scaled(x, scales, inputs, NUM_INPUTS: tl.constexpr, SCALED: tl.constexpr):
    """Return a row's inputs times the scales of the codes that they meet: the cheap side, once for all outputs."""
    if SCALED:
        x *= tl.load(scales + inputs // BLOCK, mask=inputs < NUM_INPUTS, other=0.0)
    return x


@triton.jit
def _row_kernel(
    x_ptr,
    weight_ptr,
    scales_ptr,
    out_ptr,
    WIDTH: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    GATED: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    first_column = tl.program_id(0) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    row = tl.program_id(1).to(tl.int64)
    inputs = tl.arange(0, BLOCK_K)
    column_mask = columns < WIDTH
    whole: tl.constexpr = (WIDTH % BLOCK_N == 0) and (NUM_INPUTS % BLOCK_K == 0)
    x_tile = x_ptr + row * NUM_INPUTS + inputs
    weight_tile = weight_ptr + columns.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    up_tile = weight_tile + WIDTH * NUM_INPUTS
    num_blocks: tl.constexpr = (NUM_INPUTS + BLOCK - 1) // BLOCK
    scales = scales_ptr + (first_column // BLOCK) * num_blocks
    up_scales = scales + (WIDTH // BLOCK) * num_blocks
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for done in tl.range(0, NUM_INPUTS, BLOCK_K, num_stages=STAGES):
        inside = done + inputs < NUM_INPUTS
        if whole:
            weight = tl.load(weight_tile + done)
            x = tl.load(x_tile + done).to(tl.float32)
        else:
            weight = tl.load(weight_tile + done, mask=column_mask[:, None] & inside[None, :], other=0.0)
            x = tl.load(x_tile + done, mask=inside, other=0.0).to(tl.float32)
        total += weight.to(tl.float32) * _scaled(x, scales, done + inputs, NUM_INPUTS, SCALED)[None, :]
        if GATED:
            if whole:
                up_weight = tl.load(up_tile + done)
            else:
                up_weight = tl.load(up_tile + done, mask=column_mask[:, None] & inside[None, :], other=0.0)
            up_total += up_weight.to(tl.float32) * _scaled(x, up_scales, done + inputs, NUM_INPUTS, SCALED)[None, :]
    if GATED:
        out = activate(tl.sum(total, axis=1), tl.sum(up_total, axis=1), out_ptr.dtype.element_ty)
    else:
        out = tl.sum(total, axis=1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * WIDTH + columns, out, mask=column_mask)


# Not specialised, or every number of rows that 16 divides would be compiled again.
@triton.jit(do_not_specialize=["row_stride", "num_rows"])
def _skinny_kernel(
    x_ptr,
    row_scales_ptr,
    row_stride,
    weight_ptr,
    scales_ptr,
    out_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    GATED: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS_SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
):
    num_row_blocks = tl.cdiv(num_rows, BLOCK_M)
    program = tl.program_id(0)  # row blocks of one tile of weights are neighbours
    rows = (program % num_row_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_column = (program // num_row_blocks) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    row_mask, column_mask = rows < num_rows, columns < WIDTH
    whole: tl.constexpr = (WIDTH % BLOCK_N == 0) and (NUM_INPUTS % BLOCK_K == 0)
    num_blocks: tl.constexpr = (NUM_INPUTS + BLOCK - 1) // BLOCK
    x_tile = x_ptr + rows.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    weight_tile = weight_ptr + columns.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    up_tile = weight_tile + WIDTH * NUM_INPUTS
    row_scales = row_scales_ptr + rows
    scales = scales_ptr + (first_column // BLOCK) * num_blocks
    up_scales = scales + (WIDTH // BLOCK) * num_blocks
    if SWAP:
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up_total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up_total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, NUM_INPUTS, BLOCK_K):
        inside = done + inputs < NUM_INPUTS
        if NUM_INPUTS % BLOCK_K == 0:
            x = tl.load(x_tile + done, mask=row_mask[:, None], other=0.0)
        else:
            x = tl.load(x_tile + done, mask=row_mask[:, None] & inside[None, :], other=0.0)
        if whole:
            weight = tl.load(weight_tile + done)
        else:
            weight = tl.load(weight_tile + done, mask=column_mask[:, None] & inside[None, :], other=0.0)
        total = add_product(total, x, weight, scales, row_scales, row_stride, row_mask, done, SCALED, ROWS_SCALED, SWAP)
        if GATED:
            if whole:
                up_weight = tl.load(up_tile + done)
            else:
                up_weight = tl.load(up_tile + done, mask=column_mask[:, None] & inside[None, :], other=0.0)
            up_total = add_product(
                up_total, x, up_weight, up_scales, row_scales, row_stride, row_mask, done, SCALED, ROWS_SCALED, SWAP
            )
    if GATED:
        out = activate(total, up_total, out_ptr.dtype.element_ty)
    else:
        out = total.to(out_ptr.dtype.element_ty)
    if SWAP:
        out = tl.trans(out)
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], out, mask=mask)


def row_linear(x: Tensor, weight: Weight, tiling: RowTiling, *, gated: bool = False) -> Tensor:
    """Multiply `x` `[n, K]` by `weight` `[N, K]` transposed, `[n, N]`; reads the weights once per row.

    With `gated` the result is `silu(first half) * second half`, `[n, N / 2]`. Of a weight in FP8 the codes are read;
    the tiling's outputs must then divide 128.
    """
    values, scales, is_scaled = weight_operands(weight, gated=gated)
    assert not is_scaled or FP8_BLOCK % tiling.block_n == 0, "outputs of a tile share their scales"
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    out = x.new_empty(x.shape[0], width)
    if x.shape[0]:
        _row_kernel[(triton.cdiv(width, tiling.block_n), x.shape[0])](
            x,
            values,
            scales,
            out,
            WIDTH=width,
            NUM_INPUTS=x.shape[1],
            GATED=gated,
            SCALED=is_scaled,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            STAGES=tiling.num_stages,
            num_warps=tiling.num_warps,
        )
    return out


def skinny_linear(x: Rows, weight: Weight, tiling: Tiling, *, gated: bool = False) -> Tensor:
    """Multiply `x` `[n, K]` by `weight` `[N, K]` transposed, `[n, N]`, on tensor cores; `gated` as in `row_linear`.

    Of a weight in FP8 the codes are read and multiplied in x's dtype, or by x's codes; blocks of the tiling must then
    divide 128.
    """
    rows, row_scales, row_stride, has_row_scales = row_operands(x)
    values, scales, is_scaled = weight_operands(weight, gated=gated)
    num_rows = len(x)
    width = weight.shape[0] // 2 if gated else weight.shape[0]
    out = rows.new_empty(num_rows, width, dtype=x.dtype)
    if num_rows:
        grid = (triton.cdiv(num_rows, tiling.block_m) * triton.cdiv(width, tiling.block_n),)
        _skinny_kernel[grid](
            rows,
            row_scales,
            row_stride,
            values,
            scales,
            out,
            num_rows,
            WIDTH=width,
            NUM_INPUTS=rows.shape[1],
            GATED=gated,
            SCALED=is_scaled,
            ROWS_SCALED=has_row_scales,
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            SWAP=tiling.swap,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )
    return out


def few_rows_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Do `torch.nn.functional.linear` where a few rows `[n, K]` meet `weight` `[N, K]`, by what is fastest for n and N.

    On an H100 and the products of the 8B shape: 10 to 20 % less time than cuBLAS for one row, 2 to 12 % up to 16 rows.
    """
    num_rows = x.shape[0]
    if num_rows > MOST_FEW_ROWS or x.element_size() > 2:
        return F.linear(x, weight)
    if num_rows == 1:
        return row_linear(x, weight, _ROW)
    return skinny_linear(x, weight, _BROAD if weight.shape[0] >= _BROAD_FROM else _NARROW)


def few_rows_gated(x: Tensor, gate_up: Tensor) -> Tensor:
    """Return `silu(gate) * up` `[n, I]` of rows `[n, H]` and `gate_up` `[2I, H]`, by what is fastest for n."""
    num_rows = x.shape[0]
    if num_rows > 64 or x.element_size() > 2:
        return silu_mul(F.linear(x, gate_up), x.new_empty(num_rows, gate_up.shape[0] // 2))
    if num_rows == 1:
        return row_linear(x, gate_up, _ROW, gated=True)
    return skinny_linear(x, gate_up, _NARROW if num_rows <= MOST_FEW_ROWS else _MORE_ROWS, gated=True)
