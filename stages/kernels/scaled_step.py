"""One step of a product's sum, with weights as values or as FP8 codes: for the kernels that read every weight once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from stages.weights.fp8_matrix import Fp8Matrix, Weight

BLOCK = tl.constexpr(128)  # inputs, and outputs, that share a scale: `broker_pipeline.fp8_format.FP8_BLOCK`


@triton.jit
def add_product(total, x, weight, scales, done, column_mask, SCALED: tl.constexpr, SWAP: tl.constexpr):
    """Return `total` plus rows `x` `[M, K]` times `weight` `[N, K]` transposed; with SWAP, total is `[N, M]`.

    With SCALED the weights are codes: they are multiplied in the rows' dtype, and the sum of this step by the scales,
    of which `scales` points to those of the outputs' first inputs. A step must not reach across 128 inputs.
    """
    if SCALED:
        scale = tl.load(scales + done // BLOCK, mask=column_mask, other=0.0)
        values = weight.to(x.dtype)
        if SWAP:
            total += tl.dot(values, tl.trans(x), input_precision="ieee") * scale[:, None]
        else:
            total += tl.dot(x, tl.trans(values), input_precision="ieee") * scale[None, :]
    elif SWAP:
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    else:
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    return total


def codes_and_scales(weight: Weight) -> tuple[Tensor, Tensor, bool]:
    """Return what a kernel reads, and whether it is codes with scales; values stand in for scales that are not read."""
    if isinstance(weight, Fp8Matrix):
        return weight.codes, weight.scales, True
    return weight, weight, False
