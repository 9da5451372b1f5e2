"""One step of a product's sum: values, or weights as FP8 codes, or rows and weights as codes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.kernels.codes.row_codes import BLOCK, RowCodes, Rows
from stages.weights.fp8_matrix import Fp8Matrix, Weight


@triton.jit
def add_product(
    total,
    x,
    weight,
    scales,
    row_scales,
    row_stride,
    row_mask,
    done,
    SCALED: tl.constexpr,
    ROWS_SCALED: tl.constexpr,
    SWAP: tl.constexpr,
):
    """Return `total` plus rows `x` `[M, K]` times `weight` `[N, K]` transposed; with SWAP, total is `[N, M]`.

    With SCALED the weights are codes: they are multiplied in the rows' dtype, and the sum of this step by the scale of
    their block; `scales` points to that of the first inputs. With ROWS_SCALED the rows are codes as well, and
    `row_scales` `[M]` points to theirs, `row_stride` before those of the next block. Neither these inputs nor the
    outputs may reach across a block, which sizes of tiles that divide 128 ensure.
    """
    if SCALED:
        values = weight.to(x.dtype)
        if SWAP:
            part = tl.dot(values, tl.trans(x), input_precision="ieee")
        else:
            part = tl.dot(x, tl.trans(values), input_precision="ieee")
        scale = tl.load(scales + done // BLOCK)
        if ROWS_SCALED:
            row_scale = tl.load(row_scales + done // BLOCK * row_stride, mask=row_mask, other=0.0) * scale
            if SWAP:
                total += part * row_scale[None, :]
            else:
                total += part * row_scale[:, None]
        else:
            total += part * scale
    elif SWAP:
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    else:
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    return total


def row_operands(x: Rows) -> tuple[Tensor, Tensor, int, bool]:
    """Return what a kernel reads or writes of rows: values or codes, scales, their stride, and whether it is codes."""
    if isinstance(x, RowCodes):
        return x.codes, x.scales, x.scales.shape[1], True
    return x, x, 0, False


def weight_operands(weight: Weight, *, gated: bool = False) -> tuple[Tensor, Tensor, bool]:
    """Return what a kernel reads, and whether it is codes with scales; values stand in for scales that are not read.

    With `gated` a gate stands above an up projection; in FP8 each must be whole blocks.
    """
    if isinstance(weight, Fp8Matrix):
        assert not gated or weight.shape[-2] % (2 * FP8_BLOCK) == 0, "such matrices are dequantised at load"
        return weight.codes, weight.scales.contiguous(), True
    return weight, weight, False
