"""Root-mean-square norm of rows, with the residual addition before it in the same pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    delta_ptr,
    weight_ptr,
    sum_ptr,
    out_ptr,
    eps,
    WIDTH: tl.constexpr,
    NUM_DELTAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    dtype = out_ptr.dtype.element_ty
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
    tl.store(out_ptr + row * WIDTH + columns, (normed * weight).to(dtype), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm rows `[n, H]`; the reference is `stages.qwen3_vl.text.rms_norm`."""
    out = torch.empty_like(x)
    _launch(x, x, weight, x, out, eps, num_deltas=0)
    return out


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sum `[n, H]` of `x` and `delta`, and its norm.

    `delta` is `[n, H]`, or `[n, k, H]`: then its k parts are summed first, in their order, rounded after each.
    """
    total, out = torch.empty_like(x), torch.empty_like(x)
    _launch(x, delta, weight, total, out, eps, num_deltas=1 if delta.dim() == x.dim() else delta.shape[1])
    return total, out


def _launch(x: Tensor, delta: Tensor, weight: Tensor, total: Tensor, out: Tensor, eps: float, num_deltas: int) -> None:
    num_rows, width = x.shape
    block = triton.next_power_of_2(width)
    num_warps = max(1, min(8, block // 512))
    if num_rows:
        _rms_norm_kernel[(num_rows,)](
            x, delta, weight, total, out, eps, WIDTH=width, NUM_DELTAS=num_deltas, BLOCK=block, num_warps=num_warps
        )
