"""Heads in FP8 in kernels: the reference is `stages.cached_heads`.

Kernels read two codes at a time, as one int16. Bytes by themselves are slow to bring into the order in which tensor
cores want them, and add up in another order in tiles of few rows than in large ones.

    codes of a key   [ c0 c1 | c2 c3 | … ]   ─►   even [ c0 c2 … ], odd [ c1 c3 … ]
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.cached_heads import CachedHeads, HeadCodes
from stages.kernels.codes.row_codes import nearest_code

_IS_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_INFINITY = tl.constexpr(0x7F800000)
_UNPACK = tl.constexpr("""
{
.reg .b32 low, high, bits, most, zero;
mov.b32 most, 0x7b807b80;           // 2 ** 120, by which exponents are too small
mov.b32 zero, 0x80008000;           // -0.0, and the mask of signs
shl.b32 low, $2, 8;
and.b32 bits, low, 0x7f007f00;
shr.u32 bits, bits, 4;
lop3.b32 low, low, zero, bits, 0xea;
fma.rn.bf16x2 $0, low, most, zero;
and.b32 bits, $2, 0x7f007f00;
shr.u32 bits, bits, 4;
lop3.b32 high, $2, zero, bits, 0xea;
fma.rn.bf16x2 $1, high, most, zero;
}
""")


@triton.jit
def unpack_codes(pairs, dtype: tl.constexpr):
    """Return the values of the even and of the odd codes of int16 `pairs`, in `dtype`: bfloat16 on a GPU.

    A code's bits are those of a bfloat16 with 120 less in its exponent. Triton converts by way of float16 and
    float32, which takes longer. A code that is NaN becomes 480: the scale of its head is NaN.
    """
    if _IS_INTERPRETED:
        low, high = (pairs & 255).to(tl.uint8), ((pairs >> 8) & 255).to(tl.uint8)
        even = low.to(tl.float8e4nv, bitcast=True).to(dtype)
        odd = high.to(tl.float8e4nv, bitcast=True).to(dtype)
    else:
        even, odd = tl.inline_asm_elementwise(
            _UNPACK, "=r,=r,r", [pairs], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
        even, odd = even.to(dtype), odd.to(dtype)
    return even, odd


@triton.jit
def head_codes(first, second):
    """Quantise both halves `[R, d / 2]` of fp32 heads; returns their codes, and scales bfloat16 `[R]`."""
    left, right = first.to(tl.int32, bitcast=True), second.to(tl.int32, bitcast=True)
    bits = tl.max(tl.maximum(left & 0x7FFFFFFF, right & 0x7FFFFFFF), axis=1)  # as numbers, NaN would be passed over
    exponents = tl.maximum(((bits + 0x1FFFFF) >> 23) - 8, 1)
    inverse = ((254 - exponents) << 23).to(tl.float32, bitcast=True)[:, None]
    scales = tl.where(bits < _INFINITY, (exponents << 23).to(tl.float32, bitcast=True), float("nan"))
    left, right = nearest_code(first * inverse).to(tl.float8e4nv), nearest_code(second * inverse).to(tl.float8e4nv)
    return left, right, scales.to(tl.bfloat16)


def head_operands(heads: CachedHeads) -> tuple[Tensor, Tensor, bool]:
    """Return what a kernel reads: values, or pairs of codes int16 `[m, heads, d / 2]`; scales; whether it is codes.

    Values stand in for scales that are not read.
    """
    if isinstance(heads, HeadCodes):
        return heads.codes.view(torch.int16), heads.scales, True
    return heads, heads, False
