"""Activations in FP8, by plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.weights.fp8_matrix import LARGEST_CODE, SMALLEST_SCALE


def rounded(x: Tensor) -> Tensor:
    """What is left of rows in FP8, by plain torch."""
    blocks = F.pad(x.float(), (0, -x.shape[1] % 128)).view(len(x), -1, 128)
    scales = (blocks.abs().amax(-1, keepdim=True) / LARGEST_CODE).clamp_min(SMALLEST_SCALE)
    return ((blocks / scales).to(torch.float8_e4m3fn).float() * scales).view(len(x), -1)[:, : x.shape[1]]
