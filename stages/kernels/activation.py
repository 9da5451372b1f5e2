"""What is between a block's two MLP products: the gated activation of the decoder, GELU of the vision tower."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stages.kernels.codes.row_codes import BLOCK, R, store_codes, within
from stages.kernels.codes.scaled_step import row_operands

_SIZE = 1024  # columns of one program


@triton.jit
def activate(gate, up, dtype):
    """Return `silu(gate) * up` of fp32 sums, rounded where plain torch rounds. For other kernels to end with."""
    gate = gate.to(dtype).to(tl.float32)
    up = up.to(dtype).to(tl.float32)
    return ((gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up).to(dtype)


@triton.jit(do_not_specialize=["num_rows"])
def _silu_mul_kernel(
    gate_up_ptr, out_ptr, scales_ptr, num_rows, WIDTH: tl.constexpr, SIZE: tl.constexpr, CODED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    mask = within(columns, WIDTH, num_rows)
    gate = tl.load(gate_up_ptr + row * 2 * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * WIDTH + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    out = activate(gate, up, gate_up_ptr.dtype.element_ty)
    if CODED:
        store_codes(out.to(tl.float32), tl.program_id(1) * (SIZE // BLOCK), out_ptr, scales_ptr, WIDTH)
    else:
        tl.store(out_ptr + row * WIDTH + columns, out, mask=mask)


def silu_mul(gate_up: Tensor, out: R) -> R:
    """Write `silu(gate) * up` of packed rows `[n, 2I]`, gate first, into `out`: values `[n, I]`, or their codes.

    silu is rounded before the product.
    """
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    values, scales, _, is_coded = row_operands(out)
    if num_rows:
        grid = (len(values), triton.cdiv(width, _SIZE))
        _silu_mul_kernel[grid](gate_up, values, scales, num_rows, WIDTH=width, SIZE=_SIZE, CODED=is_coded, num_warps=4)
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _gelu_kernel(
    x_ptr, bias_ptr, out_ptr, scales_ptr, num_rows, WIDTH: tl.constexpr, SIZE: tl.constexpr, CODED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    mask = within(columns, WIDTH, num_rows)
    x = tl.load(x_ptr + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    out = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))  # tanh as a logistic: 2 * sqrt(2 / pi)
    out = out.to(x_ptr.dtype.element_ty)
    if CODED:
        store_codes(out.to(tl.float32), tl.program_id(1) * (SIZE // BLOCK), out_ptr, scales_ptr, WIDTH)
    else:
        tl.store(out_ptr + row * WIDTH + columns, out, mask=mask)


def bias_gelu(x: Tensor, bias: Tensor, out: R) -> R:
    """Write the tanh form of GELU of `x` `[n, I]`, contiguous, plus `bias` `[I]` into `out`: values, or their codes."""
    num_rows, width = x.shape
    assert x.is_contiguous(), "rows are found by their number"
    values, scales, _, is_coded = row_operands(out)
    if num_rows:
        grid = (len(values), triton.cdiv(width, _SIZE))
        _gelu_kernel[grid](x, bias, values, scales, num_rows, WIDTH=width, SIZE=_SIZE, CODED=is_coded, num_warps=4)
    return out
