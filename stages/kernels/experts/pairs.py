"""Experts of few rows: pairs of a row and one of its choices, without sorting."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stages.kernels.activation import activate
from stages.kernels.codes.row_codes import BLOCK
from stages.kernels.codes.scaled_step import weight_operands
from stages.kernels.tiling import RowTiling
from stages.weights.fp8_matrix import Weight


@triton.jit
def _pair_gate_up_kernel(
    x_ptr,
    chosen_ptr,
    gate_up_ptr,
    scales_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    first_column = tl.program_id(1) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    expert = tl.load(chosen_ptr + pair).to(tl.int64)
    column_mask = columns < INNER
    x_tile = x_ptr + (pair // NUM_CHOSEN) * HIDDEN + inputs
    gate_tile = gate_up_ptr + expert * 2 * INNER * HIDDEN + columns[:, None] * HIDDEN + inputs[None, :]
    up_tile = gate_tile + INNER * HIDDEN
    num_blocks: tl.constexpr = (HIDDEN + BLOCK - 1) // BLOCK
    gate_scales = scales_ptr + (expert * (2 * INNER // BLOCK) + first_column // BLOCK) * num_blocks
    up_scales = gate_scales + (INNER // BLOCK) * num_blocks
    gate = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for done in tl.range(0, HIDDEN, BLOCK_K, num_stages=STAGES):
        if INNER % BLOCK_N != 0 or HIDDEN % BLOCK_K != 0:
            inside = done + inputs < HIDDEN
            mask = column_mask[:, None] & inside[None, :]
            gate_weight = tl.load(gate_tile + done, mask=mask, other=0.0)
            up_weight = tl.load(up_tile + done, mask=mask, other=0.0)
            x = tl.load(x_tile + done, mask=inside, other=0.0).to(tl.float32)
        else:
            gate_weight = tl.load(gate_tile + done)
            up_weight = tl.load(up_tile + done)
            x = tl.load(x_tile + done).to(tl.float32)
        if SCALED:
            gate += gate_weight.to(tl.float32) * (x * tl.load(gate_scales + done // BLOCK))[None, :]
            up += up_weight.to(tl.float32) * (x * tl.load(up_scales + done // BLOCK))[None, :]
        else:
            gate += gate_weight.to(tl.float32) * x[None, :]
            up += up_weight.to(tl.float32) * x[None, :]
    out = activate(tl.sum(gate, axis=1), tl.sum(up, axis=1), out_ptr.dtype.element_ty)
    tl.store(out_ptr + pair * INNER + columns, out, mask=column_mask)


@triton.jit
def _pair_down_kernel(
    activated_ptr,
    chosen_ptr,
    down_ptr,
    scales_ptr,
    weights_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    CHOSEN_POW2: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Take all of a row's choices in one tile (choice, output, input), so that their weights load together."""
    row = tl.program_id(0).to(tl.int64)
    dtype = out_ptr.dtype.element_ty
    choices = tl.arange(0, CHOSEN_POW2)
    first_column = tl.program_id(1) * BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    choice_mask, column_mask = choices < NUM_CHOSEN, columns < HIDDEN
    pairs = row * NUM_CHOSEN + choices
    experts = tl.load(chosen_ptr + pairs, mask=choice_mask, other=0).to(tl.int64)
    x_tile = activated_ptr + pairs[:, None, None] * INNER + inputs[None, None, :]
    lines = experts[:, None] * HIDDEN + columns[None, :]
    weight_tile = down_ptr + lines[:, :, None] * INNER + inputs[None, None, :]
    num_blocks: tl.constexpr = (INNER + BLOCK - 1) // BLOCK
    scales = scales_ptr + (experts * ((HIDDEN + BLOCK - 1) // BLOCK) + first_column // BLOCK) * num_blocks
    total = tl.zeros((CHOSEN_POW2, BLOCK_N, BLOCK_K), tl.float32)
    line_mask = choice_mask[:, None] & column_mask[None, :]
    for done in tl.range(0, INNER, BLOCK_K, num_stages=STAGES):
        if INNER % BLOCK_K == 0 and NUM_CHOSEN == CHOSEN_POW2 and HIDDEN % BLOCK_N == 0:
            weight = tl.load(weight_tile + done)
            x = tl.load(x_tile + done)
        else:
            inside = (done + inputs < INNER)[None, None, :]
            weight = tl.load(weight_tile + done, mask=line_mask[:, :, None] & inside, other=0.0)
            x = tl.load(x_tile + done, mask=choice_mask[:, None, None] & inside, other=0.0)
        if SCALED:
            scale = tl.load(scales + done // BLOCK, mask=choice_mask, other=0.0)
            total += weight.to(tl.float32) * (x.to(tl.float32) * scale[:, None, None])
        else:
            total += weight.to(tl.float32) * x.to(tl.float32)
    share = tl.load(weights_ptr + pairs, mask=choice_mask, other=0.0).to(tl.float32)
    weighted = (tl.sum(total, axis=2).to(dtype).to(tl.float32) * share[:, None]).to(dtype).to(tl.float32)
    summed = tl.zeros((BLOCK_N,), tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        one = tl.sum(tl.where(choices[:, None] == choice, weighted, 0.0), axis=0)
        summed = (summed + one).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * HIDDEN + columns, summed.to(dtype), mask=column_mask)


def pair_gate_up(x: Tensor, chosen: Tensor, gate_up: Weight, tiling: RowTiling) -> Tensor:
    """Return `silu(gate) * up` of every pair `[n * k, I]`, in the order of `chosen`.

    For experts in FP8, here and in `pair_down`, blocks of the tiling must divide 128.
    """
    values, scales, is_scaled = weight_operands(gate_up, gated=True)
    inner = gate_up.shape[1] // 2
    out = x.new_empty(chosen.numel(), inner)
    if chosen.numel():
        grid = (chosen.numel(), triton.cdiv(inner, tiling.block_n))
        _pair_gate_up_kernel[grid](
            x,
            chosen,
            values,
            scales,
            out,
            HIDDEN=x.shape[1],
            INNER=inner,
            NUM_CHOSEN=chosen.shape[1],
            SCALED=is_scaled,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            STAGES=tiling.num_stages,
            num_warps=tiling.num_warps,
        )
    return out


def pair_down(activated: Tensor, chosen: Tensor, weights: Tensor, down: Weight, tiling: RowTiling) -> Tensor:
    """Return the weighted sum over choices `[n, H]` of `activated` `[n * k, I]`."""
    values, scales, is_scaled = weight_operands(down)
    num_rows, num_chosen = chosen.shape
    out = activated.new_empty(num_rows, down.shape[1])
    if num_rows:
        _pair_down_kernel[(num_rows, triton.cdiv(down.shape[1], tiling.block_n))](
            activated,
            chosen,
            values,
            scales,
            weights,
            out,
            HIDDEN=down.shape[1],
            INNER=down.shape[2],
            NUM_CHOSEN=num_chosen,
            CHOSEN_POW2=triton.next_power_of_2(num_chosen),
            SCALED=is_scaled,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            STAGES=tiling.num_stages,
            num_warps=tiling.num_warps,
        )
    return out
