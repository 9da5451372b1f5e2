"""Experts of many rows: pairs sorted by expert, multiplied in blocks of one expert's pairs.

A block of pairs is found from the experts' starts by every program itself, so that the launch depends on shapes only:

    starts   0    5        21 22                    block_m = 16
    blocks   [ 0 ][1 ][  2 ][3]...                  an expert of c pairs has ceil(c / 16) blocks; programs past the
                                                    last block return at once
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stages.kernels.activation import activate
from stages.kernels.codes.row_codes import BLOCK, Rows
from stages.kernels.codes.scaled_step import add_product, row_operands, weight_operands
from stages.kernels.tiling import Tiling
from stages.weights.fp8_matrix import Weight


@triton.jit
def _block_of_pairs(starts_ptr, block, NUM_EXPERTS: tl.constexpr, EXPERTS_POW2: tl.constexpr, BLOCK_M: tl.constexpr):
    """Find a block's expert (NUM_EXPERTS past the last one), its first pair and the expert's last plus one."""
    experts = tl.arange(0, EXPERTS_POW2)
    real = experts < NUM_EXPERTS
    begin = tl.load(starts_ptr + experts, mask=real, other=0)
    end = tl.load(starts_ptr + experts + 1, mask=real, other=0)
    blocks_through = tl.cumsum((end - begin + BLOCK_M - 1) // BLOCK_M)
    done = blocks_through <= block
    expert = tl.minimum(tl.sum((done & real).to(tl.int32)), NUM_EXPERTS)
    blocks_before = tl.max(tl.where(done, blocks_through, 0))
    safe = tl.minimum(expert, NUM_EXPERTS - 1)
    first = tl.load(starts_ptr + safe) + (block - blocks_before) * BLOCK_M
    return expert, first, tl.load(starts_ptr + safe + 1)


@triton.jit(do_not_specialize=["row_stride"])
def _gate_up_kernel(
    x_ptr,
    row_scales_ptr,
    row_stride,
    order_ptr,
    starts_ptr,
    gate_up_ptr,
    scales_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS_SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
):
    num_tiles: tl.constexpr = (INNER + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    expert, first, end = _block_of_pairs(starts_ptr, program // num_tiles, NUM_EXPERTS, EXPERTS_POW2, BLOCK_M)
    if expert >= NUM_EXPERTS:
        return
    places = first + tl.arange(0, BLOCK_M)
    first_column = (program % num_tiles) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    row_mask, column_mask = places < end, columns < INNER
    rows = tl.load(order_ptr + places, mask=row_mask, other=0).to(tl.int64) // NUM_CHOSEN
    x_tile = x_ptr + rows[:, None] * HIDDEN + inputs[None, :]
    gate_tile = gate_up_ptr + expert.to(tl.int64) * 2 * INNER * HIDDEN + columns[:, None] * HIDDEN + inputs[None, :]
    up_tile = gate_tile + INNER * HIDDEN
    num_blocks: tl.constexpr = (HIDDEN + BLOCK - 1) // BLOCK
    row_scales = row_scales_ptr + rows
    gate_scales = scales_ptr + (expert * (2 * INNER // BLOCK) + first_column // BLOCK) * num_blocks
    up_scales = gate_scales + (INNER // BLOCK) * num_blocks
    if SWAP:
        gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, HIDDEN, BLOCK_K):
        x_mask, weight_mask = row_mask[:, None], column_mask[:, None]
        if HIDDEN % BLOCK_K != 0:
            inside = done + inputs < HIDDEN
            x_mask, weight_mask = x_mask & inside[None, :], weight_mask & inside[None, :]
        x = tl.load(x_tile + done, mask=x_mask, other=0.0)
        if INNER % BLOCK_N != 0 or HIDDEN % BLOCK_K != 0:
            gate_weight = tl.load(gate_tile + done, mask=weight_mask, other=0.0)
            up_weight = tl.load(up_tile + done, mask=weight_mask, other=0.0)
        else:
            gate_weight = tl.load(gate_tile + done)
            up_weight = tl.load(up_tile + done)
        gate = add_product(
            gate, x, gate_weight, gate_scales, row_scales, row_stride, row_mask, done, SCALED, ROWS_SCALED, SWAP
        )
        up = add_product(up, x, up_weight, up_scales, row_scales, row_stride, row_mask, done, SCALED, ROWS_SCALED, SWAP)
    out = activate(gate, up, out_ptr.dtype.element_ty)
    if SWAP:
        out = tl.trans(out)
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(out_ptr + places.to(tl.int64)[:, None] * INNER + columns[None, :], out, mask=mask)


@triton.jit(do_not_specialize=["row_stride"])
def _down_kernel(
    activated_ptr,
    row_scales_ptr,
    row_stride,
    order_ptr,
    starts_ptr,
    down_ptr,
    scales_ptr,
    weights_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS_SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
):
    num_tiles: tl.constexpr = (HIDDEN + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    expert, first, end = _block_of_pairs(starts_ptr, program // num_tiles, NUM_EXPERTS, EXPERTS_POW2, BLOCK_M)
    if expert >= NUM_EXPERTS:
        return
    dtype = out_ptr.dtype.element_ty
    places = first + tl.arange(0, BLOCK_M)
    first_column = (program % num_tiles) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    row_mask, column_mask = places < end, columns < HIDDEN
    x_tile = activated_ptr + places.to(tl.int64)[:, None] * INNER + inputs[None, :]
    weight_tile = down_ptr + expert.to(tl.int64) * HIDDEN * INNER + columns[:, None] * INNER + inputs[None, :]
    num_blocks: tl.constexpr = (INNER + BLOCK - 1) // BLOCK
    row_scales = row_scales_ptr + places
    scales = scales_ptr + (expert * ((HIDDEN + BLOCK - 1) // BLOCK) + first_column // BLOCK) * num_blocks
    if SWAP:
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, INNER, BLOCK_K):
        x_mask, weight_mask = row_mask[:, None], column_mask[:, None]
        if INNER % BLOCK_K != 0:
            inside = done + inputs < INNER
            x_mask, weight_mask = x_mask & inside[None, :], weight_mask & inside[None, :]
        x = tl.load(x_tile + done, mask=x_mask, other=0.0)
        if HIDDEN % BLOCK_N != 0 or INNER % BLOCK_K != 0:
            weight = tl.load(weight_tile + done, mask=weight_mask, other=0.0)
        else:
            weight = tl.load(weight_tile + done)
        total = add_product(total, x, weight, scales, row_scales, row_stride, row_mask, done, SCALED, ROWS_SCALED, SWAP)
    if SWAP:
        total = tl.trans(total)
    pairs = tl.load(order_ptr + places, mask=row_mask, other=0).to(tl.int64)
    share = tl.load(weights_ptr + pairs, mask=row_mask, other=0.0).to(tl.float32)
    weighted = (total.to(dtype).to(tl.float32) * share[:, None]).to(dtype)
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(out_ptr + pairs[:, None] * HIDDEN + columns[None, :], weighted, mask=mask)


def sorted_gate_up(
    x: Rows,
    order: Tensor,
    starts: Tensor,
    gate_up: Weight,
    num_chosen: int,
    tiling: Tiling,
) -> Tensor:
    """Return `silu(gate) * up` of every pair `[n * k, I]`, in the pairs' sorted order."""
    rows, row_scales, row_stride, has_row_scales = row_operands(x)
    values, scales, is_scaled = weight_operands(gate_up, gated=True)
    num_experts, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = rows.new_empty(order.numel(), inner, dtype=x.dtype)
    grid = (_max_blocks(order.numel(), num_experts, tiling) * triton.cdiv(inner, tiling.block_n),)
    _gate_up_kernel[grid](
        rows,
        row_scales,
        row_stride,
        order,
        starts,
        values,
        scales,
        out,
        HIDDEN=rows.shape[1],
        INNER=inner,
        NUM_EXPERTS=num_experts,
        EXPERTS_POW2=triton.next_power_of_2(num_experts),
        NUM_CHOSEN=num_chosen,
        SCALED=is_scaled,
        ROWS_SCALED=has_row_scales,
        **_cut(tiling),
    )
    return out


def sorted_down(
    activated: Rows, order: Tensor, starts: Tensor, weights: Tensor, down: Weight, tiling: Tiling
) -> Tensor:
    """Return the weighted outputs `[n, k, H]` of sorted `activated` `[n * k, I]`, in the dtype of `weights`."""
    rows, row_scales, row_stride, has_row_scales = row_operands(activated)
    values, scales, is_scaled = weight_operands(down)
    num_experts, hidden, inner = down.shape
    out = weights.new_empty(*weights.shape, hidden)
    grid = (_max_blocks(order.numel(), num_experts, tiling) * triton.cdiv(hidden, tiling.block_n),)
    _down_kernel[grid](
        rows,
        row_scales,
        row_stride,
        order,
        starts,
        values,
        scales,
        weights,
        out,
        HIDDEN=hidden,
        INNER=inner,
        NUM_EXPERTS=num_experts,
        EXPERTS_POW2=triton.next_power_of_2(num_experts),
        SCALED=is_scaled,
        ROWS_SCALED=has_row_scales,
        **_cut(tiling),
    )
    return out


def _max_blocks(num_pairs: int, num_experts: int, tiling: Tiling) -> int:
    """Return the most blocks that `num_pairs` pairs can make, however they fall on experts; at least one."""
    return max(1, min(num_pairs, num_pairs // tiling.block_m + num_experts))


def _cut(tiling: Tiling) -> dict[str, int | bool]:
    return {
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "BLOCK_K": tiling.block_k,
        "SWAP": tiling.swap,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }
