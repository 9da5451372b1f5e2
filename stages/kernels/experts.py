"""The experts of a sparse block on the card: every chosen expert's MLP for every row, without padding or host reads.

    few rows    pairs (row, choice):  gate_up of each pair ─► down of each pair ─► sum over choices
    more rows   sort pairs by expert ─► gate_up by (block of one expert's pairs, tile) ─► down likewise ─► sum

A block of pairs is found from the experts' starts by every program itself, so that the launch depends on shapes only:

    starts   0    5        21 22                    block_m = 16
    blocks   [ 0 ][1 ][  2 ][3]...                  an expert of c pairs has ceil(c / 16) blocks; programs past the
                                                    last block return at once

A value's sum over inputs runs in one order that only the tiling fixes: no split sums, no atomics. So a row's result
depends on its own inputs and on the tiling alone; with `deterministic` one tiling serves every number of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.expert_sort import sort_by_expert
from stages.kernels.expert_tiling import MAX_PAIR_ROWS, PAIR_DOWN, PAIR_GATE_UP, PairTiling, Tiling, tilings_for
from stages.kernels.matmul import invariant_linear
from stages.kernels.routing import choose_experts


@triton.jit
def _activate(gate, up, dtype):
    """`silu(gate) * up` of fp32 sums, rounded to dtype where the eager path rounds."""
    gate = gate.to(dtype).to(tl.float32)
    up = up.to(dtype).to(tl.float32)
    return ((gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up).to(dtype)


@triton.jit
def _block_of_pairs(starts_ptr, block, NUM_EXPERTS: tl.constexpr, EXPERTS_POW2: tl.constexpr, BLOCK_M: tl.constexpr):
    """The expert of a block (NUM_EXPERTS past the last one), the block's first pair and the expert's last plus one."""
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


@triton.jit
def _gate_up_kernel(
    x_ptr,
    order_ptr,
    starts_ptr,
    gate_up_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
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
    columns = (program % num_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    row_mask, column_mask = places < end, columns < INNER
    rows = tl.load(order_ptr + places, mask=row_mask, other=0).to(tl.int64) // NUM_CHOSEN
    x_tile = x_ptr + rows[:, None] * HIDDEN + inputs[None, :]
    gate_tile = gate_up_ptr + expert.to(tl.int64) * 2 * INNER * HIDDEN + columns[:, None] * HIDDEN + inputs[None, :]
    up_tile = gate_tile + INNER * HIDDEN
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
        if SWAP:
            gate = tl.dot(gate_weight, tl.trans(x), gate, input_precision="ieee")
            up = tl.dot(up_weight, tl.trans(x), up, input_precision="ieee")
        else:
            gate = tl.dot(x, tl.trans(gate_weight), gate, input_precision="ieee")
            up = tl.dot(x, tl.trans(up_weight), up, input_precision="ieee")
    out = _activate(gate, up, out_ptr.dtype.element_ty)
    if SWAP:
        out = tl.trans(out)
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(out_ptr + places.to(tl.int64)[:, None] * INNER + columns[None, :], out, mask=mask)


@triton.jit
def _down_kernel(
    activated_ptr,
    order_ptr,
    starts_ptr,
    down_ptr,
    weights_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POW2: tl.constexpr,
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
    columns = (program % num_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    row_mask, column_mask = places < end, columns < HIDDEN
    x_tile = activated_ptr + places.to(tl.int64)[:, None] * INNER + inputs[None, :]
    weight_tile = down_ptr + expert.to(tl.int64) * HIDDEN * INNER + columns[:, None] * INNER + inputs[None, :]
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
        if SWAP:
            total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
        else:
            total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    if SWAP:
        total = tl.trans(total)
    pairs = tl.load(order_ptr + places, mask=row_mask, other=0).to(tl.int64)
    share = tl.load(weights_ptr + pairs, mask=row_mask, other=0.0).to(tl.float32)
    weighted = (total.to(dtype).to(tl.float32) * share[:, None]).to(dtype)
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(out_ptr + pairs[:, None] * HIDDEN + columns[None, :], weighted, mask=mask)


@triton.jit
def _pair_gate_up_kernel(
    x_ptr,
    chosen_ptr,
    gate_up_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    expert = tl.load(chosen_ptr + pair).to(tl.int64)
    column_mask = columns < INNER
    x_tile = x_ptr + (pair // NUM_CHOSEN) * HIDDEN + inputs
    gate_tile = gate_up_ptr + expert * 2 * INNER * HIDDEN + columns[:, None] * HIDDEN + inputs[None, :]
    up_tile = gate_tile + INNER * HIDDEN
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
        gate += gate_weight.to(tl.float32) * x[None, :]
        up += up_weight.to(tl.float32) * x[None, :]
    out = _activate(tl.sum(gate, axis=1), tl.sum(up, axis=1), out_ptr.dtype.element_ty)
    tl.store(out_ptr + pair * INNER + columns, out, mask=column_mask)


@triton.jit
def _pair_down_kernel(
    activated_ptr,
    chosen_ptr,
    down_ptr,
    weights_ptr,
    residual_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    CHOSEN_POW2: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All of a row's choices in one tile (choice, output, input), so that their weights load together."""
    row = tl.program_id(0).to(tl.int64)
    dtype = out_ptr.dtype.element_ty
    choices = tl.arange(0, CHOSEN_POW2)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inputs = tl.arange(0, BLOCK_K)
    choice_mask, column_mask = choices < NUM_CHOSEN, columns < HIDDEN
    pairs = row * NUM_CHOSEN + choices
    experts = tl.load(chosen_ptr + pairs, mask=choice_mask, other=0).to(tl.int64)
    x_tile = activated_ptr + pairs[:, None, None] * INNER + inputs[None, None, :]
    lines = experts[:, None] * HIDDEN + columns[None, :]
    weight_tile = down_ptr + lines[:, :, None] * INNER + inputs[None, None, :]
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
        total += weight.to(tl.float32) * x.to(tl.float32)
    share = tl.load(weights_ptr + pairs, mask=choice_mask, other=0.0).to(tl.float32)
    weighted = (tl.sum(total, axis=2).to(dtype).to(tl.float32) * share[:, None]).to(dtype).to(tl.float32)
    summed = tl.zeros((BLOCK_N,), tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        one = tl.sum(tl.where(choices[:, None] == choice, weighted, 0.0), axis=0)
        summed = (summed + one).to(dtype).to(tl.float32)
    if HAS_RESIDUAL:
        summed += tl.load(residual_ptr + row * HIDDEN + columns, mask=column_mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * HIDDEN + columns, summed.to(dtype), mask=column_mask)


@triton.jit
def _combine_kernel(
    parts_ptr,
    residual_ptr,
    out_ptr,
    HIDDEN: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    dtype = out_ptr.dtype.element_ty
    summed = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        part = tl.load(parts_ptr + (row * NUM_CHOSEN + choice) * HIDDEN + columns, mask=mask, other=0.0)
        summed = (summed + part.to(tl.float32)).to(dtype).to(tl.float32)
    if HAS_RESIDUAL:
        summed += tl.load(residual_ptr + row * HIDDEN + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * HIDDEN + columns, summed.to(dtype), mask=mask)


def fused_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    residual: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """An `ExpertCompute` on the card: the weighted sum `[n, H]` of the chosen experts, plus `residual` `[n, H]` if any.

    `chosen` is int32 or int64 with ids in [0, E). The sum runs in the order of a row's choices, rounded after each, as
    `eager_experts` does in ascending order of experts: `choose_experts` gives the choices in that order. All tensors
    are contiguous.
    """
    if x.shape[0] <= MAX_PAIR_ROWS and not deterministic:
        activated = pair_gate_up(x, chosen, gate_up, PAIR_GATE_UP)
        return pair_down(activated, chosen, weights, down, residual, PAIR_DOWN)
    parts = expert_parts(x, chosen, weights, gate_up, down, deterministic=deterministic)
    return combine(parts, residual)


def expert_parts(
    x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *, deterministic: bool = False
) -> Tensor:
    """What each choice adds to its row, `[n, k, H]`, already weighted; see `fused_experts`."""
    tilings = tilings_for(chosen.numel(), gate_up.shape[0], x.element_size(), deterministic=deterministic)
    order, starts = sort_by_expert(chosen, gate_up.shape[0])
    activated = sorted_gate_up(x, order, starts, gate_up, chosen.shape[1], tilings.gate_up)
    return sorted_down(activated, order, starts, weights, down, tilings.down)


def moe_block(
    x: Tensor,
    router: Tensor,
    gate_up: Tensor,
    down: Tensor,
    num_chosen: int,
    residual: Tensor | None = None,
    *,
    deterministic: bool = False,
) -> Tensor:
    """The experts' half of a sparse block, from normed rows `[n, H]` to `residual + experts` `[n, H]`.

    Shapes: router `[E, H]`, gate_up `[E, 2I, H]`, down `[E, H, I]`. With `deterministic` a row's result depends on
    neither the number nor the contents of the other rows.
    """
    logits = invariant_linear(x, router) if deterministic else F.linear(x, router)
    chosen, weights = choose_experts(logits, num_chosen)
    return fused_experts(x, chosen, weights, gate_up, down, residual=residual, deterministic=deterministic)


def sorted_gate_up(
    x: Tensor, order: Tensor, starts: Tensor, gate_up: Tensor, num_chosen: int, tiling: Tiling
) -> Tensor:
    """`silu(gate) * up` of every pair `[n * k, I]`, in the pairs' sorted order."""
    num_experts, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = x.new_empty(order.numel(), inner)
    grid = (_max_blocks(order.numel(), num_experts, tiling) * triton.cdiv(inner, tiling.block_n),)
    _gate_up_kernel[grid](
        x,
        order,
        starts,
        gate_up,
        out,
        HIDDEN=x.shape[1],
        INNER=inner,
        NUM_EXPERTS=num_experts,
        EXPERTS_POW2=triton.next_power_of_2(num_experts),
        NUM_CHOSEN=num_chosen,
        **_cut(tiling),
    )
    return out


def sorted_down(
    activated: Tensor, order: Tensor, starts: Tensor, weights: Tensor, down: Tensor, tiling: Tiling
) -> Tensor:
    """The weighted outputs `[n, k, H]` of sorted `activated` `[n * k, I]`."""
    num_experts, hidden, inner = down.shape
    out = activated.new_empty(*weights.shape, hidden)
    grid = (_max_blocks(order.numel(), num_experts, tiling) * triton.cdiv(hidden, tiling.block_n),)
    _down_kernel[grid](
        activated,
        order,
        starts,
        down,
        weights,
        out,
        HIDDEN=hidden,
        INNER=inner,
        NUM_EXPERTS=num_experts,
        EXPERTS_POW2=triton.next_power_of_2(num_experts),
        **_cut(tiling),
    )
    return out


def pair_gate_up(x: Tensor, chosen: Tensor, gate_up: Tensor, tiling: PairTiling) -> Tensor:
    """`silu(gate) * up` of every pair `[n * k, I]`, in the order of `chosen`."""
    inner = gate_up.shape[1] // 2
    out = x.new_empty(chosen.numel(), inner)
    if chosen.numel():
        grid = (chosen.numel(), triton.cdiv(inner, tiling.block_n))
        _pair_gate_up_kernel[grid](
            x,
            chosen,
            gate_up,
            out,
            HIDDEN=x.shape[1],
            INNER=inner,
            NUM_CHOSEN=chosen.shape[1],
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            STAGES=tiling.num_stages,
            num_warps=tiling.num_warps,
        )
    return out


def pair_down(
    activated: Tensor, chosen: Tensor, weights: Tensor, down: Tensor, residual: Tensor | None, tiling: PairTiling
) -> Tensor:
    """The weighted sum over choices `[n, H]` of `activated` `[n * k, I]`, plus the residual."""
    num_rows, num_chosen = chosen.shape
    out = activated.new_empty(num_rows, down.shape[1])
    if num_rows:
        _pair_down_kernel[(num_rows, triton.cdiv(down.shape[1], tiling.block_n))](
            activated,
            chosen,
            down,
            weights,
            out if residual is None else residual,
            out,
            HIDDEN=down.shape[1],
            INNER=down.shape[2],
            NUM_CHOSEN=num_chosen,
            CHOSEN_POW2=triton.next_power_of_2(num_chosen),
            HAS_RESIDUAL=residual is not None,
            BLOCK_N=tiling.block_n,
            BLOCK_K=tiling.block_k,
            STAGES=tiling.num_stages,
            num_warps=tiling.num_warps,
        )
    return out


def combine(parts: Tensor, residual: Tensor | None) -> Tensor:
    """The sum over choices `[n, H]` of `parts` `[n, k, H]`, in their order, rounded after each; plus the residual."""
    num_rows, num_chosen, hidden = parts.shape
    out = parts.new_empty(num_rows, hidden)
    if num_rows:
        block = min(1024, triton.next_power_of_2(hidden))
        _combine_kernel[(num_rows, triton.cdiv(hidden, block))](
            parts,
            out if residual is None else residual,
            out,
            HIDDEN=hidden,
            NUM_CHOSEN=num_chosen,
            HAS_RESIDUAL=residual is not None,
            BLOCK=block,
            num_warps=4,
        )
    return out


def _max_blocks(num_pairs: int, num_experts: int, tiling: Tiling) -> int:
    """The most blocks that `num_pairs` pairs can make, however they fall on experts; at least one."""
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
