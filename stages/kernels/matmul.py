"""A matrix product whose rows do not know of each other, for `--deterministic`.

cuBLAS chooses another kernel, and with it another order of sums, for every number of rows. Here one tile shape serves
all of them: each value is the same sequence of tensor-core steps over its inputs, whatever shares its tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_GROUP_M = 8  # blocks of rows that take turns on the same weights while these are in the L2 cache


@triton.jit
def _linear_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    NUM_INPUTS: tl.constexpr,
    GROUP_M: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    num_row_blocks = tl.cdiv(num_rows, BLOCK_M)
    num_tiles: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    group = program // (GROUP_M * num_tiles)
    group_size = tl.minimum(num_row_blocks - group * GROUP_M, GROUP_M)
    row_block = group * GROUP_M + (program % (GROUP_M * num_tiles)) % group_size
    tile = (program % (GROUP_M * num_tiles)) // group_size
    rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    row_mask, column_mask = rows < num_rows, columns < WIDTH
    x_tile = x_ptr + rows.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    weight_tile = weight_ptr + columns.to(tl.int64)[:, None] * NUM_INPUTS + inputs[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, NUM_INPUTS, BLOCK_K):
        x_mask, weight_mask = row_mask[:, None], column_mask[:, None]
        if NUM_INPUTS % BLOCK_K != 0:
            inside = done + inputs < NUM_INPUTS
            x_mask, weight_mask = x_mask & inside[None, :], weight_mask & inside[None, :]
        x = tl.load(x_tile + done, mask=x_mask, other=0.0)
        weight = tl.load(weight_tile + done, mask=weight_mask, other=0.0)
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    mask = row_mask[:, None] & column_mask[None, :]
    out_tile = out_ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(out_tile, total.to(out_ptr.dtype.element_ty), mask=mask)


def invariant_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x` `[n, K]` times `weight` `[N, K]` transposed, `[n, N]`; a row's result depends on that row alone.

    Sums in fp32 and rounds once, to the dtype of both (bf16, fp16 or fp32). Both are contiguous.
    """
    num_rows, num_inputs = x.shape
    width = weight.shape[0]
    out = x.new_empty(num_rows, width)
    block_m, block_n, block_k, num_warps, num_stages = (
        (64, 128, 64, 4, 4) if x.element_size() == 2 else (16, 32, 32, 4, 2)
    )
    if num_rows:
        grid = (triton.cdiv(num_rows, block_m) * triton.cdiv(width, block_n),)
        _linear_kernel[grid](
            x,
            weight,
            out,
            num_rows,
            WIDTH=width,
            NUM_INPUTS=num_inputs,
            GROUP_M=_GROUP_M,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=num_warps,
            num_stages=num_stages,
        )
    return out
