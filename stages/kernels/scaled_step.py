"""One step of a product's sum, with weights as values or as FP8 codes: for the kernels that read every weight once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.weights.fp8_matrix import Fp8Matrix, Weight

BLOCK = tl.constexpr(FP8_BLOCK)


@triton.jit
def add_product(total, x, weight, scales, done, SCALED: tl.constexpr, SWAP: tl.constexpr):
    """Return `total` plus rows `x` `[M, K]` times `weight` `[N, K]` transposed; with SWAP, total is `[N, M]`.

    With SCALED the weights are codes: they are multiplied in the rows' dtype, and the sum of this step by the scale of
    their block; `scales` points to that of the first inputs. Neither these inputs nor the outputs may reach across a
    block, which sizes of tiles that divide 128 ensure.
    """
    if SCALED:
        values = weight.to(x.dtype)
        if SWAP:
            part = tl.dot(values, tl.trans(x), input_precision="ieee")
        else:
            part = tl.dot(x, tl.trans(values), input_precision="ieee")
        total += part * tl.load(scales + done // BLOCK)
    elif SWAP:
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    else:
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    return total


def codes_and_scales(weight: Weight, *, gated: bool = False) -> tuple[Tensor, Tensor, bool]:
    """Return what a kernel reads, and whether it is codes with scales; values stand in for scales that are not read.

    With `gated` a gate stands above an up projection; in FP8 each must be whole blocks.
    """
    if isinstance(weight, Fp8Matrix):
        assert not gated or weight.shape[-2] % (2 * FP8_BLOCK) == 0, (
            "such matrices are dequantised when they are loaded"
        )
        return weight.codes, weight.scales, True
    return weight, weight, False
