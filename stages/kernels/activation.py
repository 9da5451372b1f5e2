"""The gated activation between a block's two MLP products."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def activate(gate, up, dtype):
    """Return `silu(gate) * up` of fp32 sums, rounded where plain torch rounds. For other kernels to end with."""
    gate = gate.to(dtype).to(tl.float32)
    up = up.to(dtype).to(tl.float32)
    return ((gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up).to(dtype)


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    gate = tl.load(gate_up_ptr + row * 2 * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * WIDTH + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    out = activate(gate, up, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * WIDTH + columns, out, mask=mask)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return `silu(gate) * up` `[n, I]` of packed rows `[n, 2I]`, gate first; silu is rounded before the product."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    if num_rows:
        grid = (num_rows, triton.cdiv(width, _BLOCK))
        _silu_mul_kernel[grid](gate_up, out, WIDTH=width, BLOCK=_BLOCK, num_warps=4)
    return out
