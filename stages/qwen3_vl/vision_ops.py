"""The parts of the vision tower's blocks that have a faster form on a GPU.

`EagerVisionOps` is the meaning, with the roundings of the reference implementation. `FusedVisionOps` computes the same
in bf16 on CUDA: one kernel turns queries and keys where they lie, one attends to all frames whatever their lengths, one
adds to the residual stream and norms it, and GELU is applied by the matrix product before it rounds.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.flash_attention import attend_tiles
from stages.qwen3_vl.attention import Attention, EagerAttention
from stages.qwen3_vl.rope import rotate
from stages.qwen3_vl.vision_config import VISION_LAYER_NORM_EPS
from stages.qwen3_vl.vision_places import BatchPlaces

_FLASH_CHANNELS = 8
"""Flash attention wants heads of a multiple of this many channels."""


class VisionOps(Protocol):
    """What a block needs besides norms, linear maps and sums."""

    def attend(self, qkv: Tensor, places: BatchPlaces) -> Tensor:
        """Rotate, and attend within each frame: `[N, 3, heads, d]` (not needed afterwards) -> `[N, heads * d]`."""

    def gelu_linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply the tanh form of GELU after a linear map."""

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of two `[N, hidden]`, and its layer norm."""


class EagerVisionOps:
    """Step by step; any device and dtype."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    def attend(self, qkv: Tensor, places: BatchPlaces) -> Tensor:
        """See `VisionOps`."""
        q, k, v = qkv.unbind(1)
        cos, sin = (torch.cat((half, half), dim=-1).unsqueeze(1) for half in (places.cos, places.sin))
        q = rotate(q.float(), cos, sin).to(qkv.dtype)
        k = rotate(k.float(), cos, sin).to(qkv.dtype)
        return self._attention.attend_frames(q, k, v, places.lengths).flatten(1)

    def gelu_linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `VisionOps`."""
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """See `VisionOps`."""
        total = x + delta
        return total, F.layer_norm(total, weight.shape, weight, bias, VISION_LAYER_NORM_EPS)


class FusedVisionOps:
    """For bf16 on CUDA. Needs Triton."""

    def __init__(self) -> None:
        # Triton is only where CUDA is
        from stages.kernels.vision_norms import add_layer_norm  # noqa: PLC0415
        from stages.kernels.vision_rotation import rotate_packed  # noqa: PLC0415

        self._add_norm, self._rotate = add_layer_norm, rotate_packed

    def attend(self, qkv: Tensor, places: BatchPlaces) -> Tensor:
        """See `VisionOps`."""
        self._rotate(qkv, places.cos, places.sin)
        q, k, v = qkv.unbind(1)
        offsets, key_starts, key_lengths = places.tiles
        tiles = offsets, key_starts, key_lengths[:-1]
        return attend_tiles(q, k, v, tiles, max_keys=len(q), is_causal=False).flatten(1)

    def gelu_linear(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See `VisionOps`. On CUDA this operation has the tanh form (on the CPU it has the other)."""
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)  # noqa: SLF001 - it has no public name

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """See `VisionOps`."""
        return self._add_norm(x, delta, weight, bias, VISION_LAYER_NORM_EPS)


def choose_vision_ops(attention: Attention, head_dim: int, device: torch.device, dtype: torch.dtype) -> VisionOps:
    """Return the fastest that has the attention's meaning: eager attention was asked for its roundings."""
    is_fusible = device.type == "cuda" and dtype == torch.bfloat16 and head_dim % _FLASH_CHANNELS == 0
    return FusedVisionOps() if is_fusible and not isinstance(attention, EagerAttention) else EagerVisionOps(attention)
