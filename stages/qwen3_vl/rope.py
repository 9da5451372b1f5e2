"""Rotary position embeddings: the decoder's interleaved three-axis form and the vision tower's two-axis form.

Decoder (interleaved M-RoPE, Qwen3-VL): frequency j of head_dim/2 turns with one of three positions

    j      0 1 2 3 4 5 … 57 58 59 | 60 61 62 63        (mrope_section 24, 20, 20)
    axis   T H W T H W …  T  H  W |  T  T  T  T

so with equal positions on all axes it is plain rotary embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.qwen3_vl.text_config import TextConfig
from stages.qwen3_vl.vision_config import VisionConfig


def text_frequencies(config: TextConfig, device: torch.device) -> Tensor:
    """Return fp32 `[head_dim / 2]`: theta^(-2j / head_dim). Always fp32: rounding them to bf16 ruins long positions."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    return (1.0 / config.rope_theta ** (steps / config.head_dim)).to(device)


def frequency_axes(config: TextConfig, device: torch.device) -> Tensor:
    """Return int64 `[head_dim / 2]`: which axis (0 time, 1 height, 2 width) each frequency follows."""
    axes = torch.zeros(config.head_dim // 2, dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * config.mrope_section[axis] : 3] = axis
    return axes.to(device)


def text_rotation(positions: Tensor, frequencies: Tensor, axes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[n, 1, head_dim]` in the activation dtype, for int32 positions `[3, n]`."""
    angles = positions.float()[axes].T * frequencies  # [n, head_dim / 2], each column from its own axis
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x` `[n, heads, d]`; channel j of the first half pairs with channel j of the second."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def vision_rotation(rows: Tensor, columns: Tensor, config: VisionConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines fp32 `[N, head_dim / 2]` for the patch coordinates `[N]` within each frame.

    They are those of either half of a head's channels, which `rotate` wants side by side.
    """
    half = config.head_dim // 2
    steps = torch.arange(0, half, 2, dtype=torch.float32, device=rows.device)
    frequencies = 1.0 / config.rope_theta ** (steps / half)
    angles = torch.cat((rows.float()[:, None] * frequencies, columns.float()[:, None] * frequencies), dim=-1)
    return angles.cos(), angles.sin()
