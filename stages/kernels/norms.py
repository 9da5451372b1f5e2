"""Root-mean-square norm of rows, with the residual addition before it in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.kernels.codes.row_codes import R, store_codes, within
from stages.kernels.codes.scaled_step import row_operands


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x_ptr,
    delta_ptr,
    weight_ptr,
    sum_ptr,
    out_ptr,
    scales_ptr,
    num_rows,
    eps,
    WIDTH: tl.constexpr,
    NUM_DELTAS: tl.constexpr,
    BLOCK: tl.constexpr,
    CODED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = within(columns, WIDTH, num_rows)
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    if NUM_DELTAS > 0:
        delta = tl.zeros((BLOCK,), tl.float32)
        for index in tl.static_range(NUM_DELTAS):
            one = delta_ptr + (row * NUM_DELTAS + index) * WIDTH + columns
            delta = (delta + tl.load(one, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
        x = (x + delta).to(dtype).to(tl.float32)
        tl.store(sum_ptr + row * WIDTH + columns, x.to(dtype), mask=mask)
    scale = tl.rsqrt(tl.sum(x * x) / WIDTH + eps)
    normed = (x * scale).to(dtype).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    out = (normed * weight).to(dtype)
    if CODED:
        store_codes(out.to(tl.float32), 0, out_ptr, scales_ptr, WIDTH)
    else:
        tl.store(out_ptr + row * WIDTH + columns, out, mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: R) -> R:
    """Norm rows `[n, H]` into `out`, as values or as their codes; the reference is `stages.qwen3_vl.text.rms_norm`."""
    return _launch(x, x, weight, x, out, eps, num_deltas=0)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float, out: R) -> tuple[Tensor, R]:
    """Return the sum `[n, H]` of `x` and `delta`, and its norm, which is in `out` as `rms_norm` writes it.

    `delta` is `[n, H]`, or `[n, k, H]`: then its k parts are summed first, in their order, rounded after each.
    """
    total, num_deltas = torch.empty_like(x), 1 if delta.dim() == x.dim() else delta.shape[1]
    return total, _launch(x, delta, weight, total, out, eps, num_deltas=num_deltas)


def _launch(x: Tensor, delta: Tensor, weight: Tensor, total: Tensor, out: R, eps: float, *, num_deltas: int) -> R:
    num_rows, width = x.shape
    block = max(FP8_BLOCK, triton.next_power_of_2(width))
    values, scales, _, is_coded = row_operands(out)
    if num_rows:
        _rms_norm_kernel[(len(values),)](
            x,
            delta,
            weight,
            total,
            values,
            scales,
            num_rows,
            eps,
            WIDTH=width,
            NUM_DELTAS=num_deltas,
            BLOCK=block,
            CODED=is_coded,
            num_warps=max(1, min(8, block // 512)),
        )
    return out
