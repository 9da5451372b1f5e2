"""The vision tower's blocks with their matrices in FP8. Mergers stay as they are: few rows, and the last to round.

The inner side of the MLP is filled up to a multiple of 128 by zeros, which change nothing, since GELU of zero is zero:

    fc1 ┌───────┐ 4304    fc2 ┌──────────┬─┐
        │       │             │          │0│
        ├───────┤             └──────────┴─┘
        │   0   │ 4352              4304 4352
        └───────┘
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.weights.fp8_matrix import SCALES_MULTIPLE, Fp8Matrix, Weight, quantise

_MATRIX = re.compile(r".*\bblocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])\.weight")


def tower_in_fp8(tensors: Mapping[str, Tensor]) -> dict[str, Weight]:
    """Return a tower's tensors by name, each block's four matrices in FP8."""
    return {
        name: _quantised(_widened(name, tensor)) if _MATRIX.fullmatch(name) else _widened(name, tensor)
        for name, tensor in tensors.items()
    }


def _quantised(matrix: Tensor) -> Fp8Matrix:
    """Quantise; rows of scales lie a multiple of four apart, as the library's product reads them."""
    found = quantise(matrix)
    num_blocks = found.scales.shape[1]
    return Fp8Matrix(found.codes, F.pad(found.scales, (0, -num_blocks % SCALES_MULTIPLE))[:, :num_blocks])


def _widened(name: str, tensor: Tensor) -> Tensor:
    """Fill up the inner side of a block's MLP to a multiple of 128."""
    if "blocks." not in name:
        return tensor
    if name.endswith("mlp.linear_fc1.weight"):
        return F.pad(tensor, (0, 0, 0, -tensor.shape[0] % FP8_BLOCK))
    if name.endswith(("mlp.linear_fc1.bias", "mlp.linear_fc2.weight")):
        return F.pad(tensor, (0, -tensor.shape[-1] % FP8_BLOCK))
    return tensor
