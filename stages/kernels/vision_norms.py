"""Layer norm of rows with the residual addition before it, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.kernels.codes.row_codes import R, store_codes, within
from stages.kernels.codes.scaled_step import row_operands


@triton.jit(do_not_specialize=["num_rows"])
def _add_layer_norm_kernel(
    x_ptr,
    delta_ptr,
    delta_bias_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    out_ptr,
    scales_ptr,
    num_rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BIASED: tl.constexpr,
    CODED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    mask = within(columns, WIDTH, num_rows)
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row + columns, mask=mask, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + row + columns, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        delta_bias = tl.load(delta_bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        delta = (delta + delta_bias).to(dtype).to(tl.float32)
    x = (x + delta).to(dtype).to(tl.float32)
    tl.store(sum_ptr + row + columns, x.to(dtype), mask=mask)
    centred = tl.where(mask, x - tl.sum(x) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / WIDTH + eps)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    out = (centred * scale * weight + bias).to(dtype)
    if CODED:
        store_codes(out.to(tl.float32), 0, out_ptr, scales_ptr, WIDTH)
    else:
        tl.store(out_ptr + row + columns, out, mask=mask)


def add_layer_norm(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float, out: R, delta_bias: Tensor | None = None
) -> tuple[Tensor, R]:
    """Return the sum of `x` and `delta`, `[n, H]` both and contiguous, and its layer norm, which is written to `out`.

    `out` is room for values or for codes. A `delta_bias` `[H]` is added to `delta` first.
    """
    num_rows, width = x.shape
    assert x.is_contiguous(), "rows are found by their number"
    assert delta.is_contiguous(), "rows are found by their number"
    total = torch.empty_like(x)
    block = max(FP8_BLOCK, triton.next_power_of_2(width))
    values, scales, _, is_coded = row_operands(out)
    if num_rows:
        _add_layer_norm_kernel[(len(values),)](
            x,
            delta,
            bias if delta_bias is None else delta_bias,
            weight,
            bias,
            total,
            values,
            scales,
            num_rows,
            eps,
            WIDTH=width,
            BLOCK=block,
            BIASED=delta_bias is not None,
            CODED=is_coded,
            num_warps=max(1, min(8, block // 512)),
        )
    return total, out
