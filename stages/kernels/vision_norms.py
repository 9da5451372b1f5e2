"""Layer norm of rows with the residual addition before it, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_layer_norm_kernel(
    x_ptr, delta_ptr, weight_ptr, bias_ptr, sum_ptr, out_ptr, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    dtype = out_ptr.dtype.element_ty
    x = tl.load(x_ptr + row + columns, mask=mask, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + row + columns, mask=mask, other=0.0).to(tl.float32)
    x = (x + delta).to(dtype).to(tl.float32)
    tl.store(sum_ptr + row + columns, x.to(dtype), mask=mask)
    centred = tl.where(mask, x - tl.sum(x) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / WIDTH + eps)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row + columns, (centred * scale * weight + bias).to(dtype), mask=mask)


def add_layer_norm(x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sum of `x` and `delta`, `[n, H]` both and contiguous, and its layer norm."""
    num_rows, width = x.shape
    assert x.is_contiguous(), "rows are found by their number"
    assert delta.is_contiguous(), "rows are found by their number"
    total, out = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(width)
    if num_rows:
        _add_layer_norm_kernel[(num_rows,)](
            x, delta, weight, bias, total, out, eps, WIDTH=width, BLOCK=block, num_warps=max(1, min(8, block // 512))
        )
    return total, out
