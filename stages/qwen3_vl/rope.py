"""Rotary position embeddings: the decoder's interleaved three-axis form and the vision tower's two-axis form.

Decoder (interleaved M-RoPE, Qwen3-VL): frequency j of head_dim/2 turns with one of three positions

    j      0 1 2 3 4 5 … 57 58 59 | 60 61 62 63        (mrope_section 24, 20, 20)
    axis   T H W T H W …  T  H  W |  T  T  T  T

so with equal positions on all axes it is plain rotary embedding. YaRN changes frequencies and multiplies cosines and
sines; which axis a frequency follows stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.qwen3_vl.rope_config import YarnScaling
from stages.qwen3_vl.text_config import TextConfig
from stages.qwen3_vl.vision_config import VisionConfig


@dataclass(frozen=True, slots=True)
class TextRope:
    """What turns positions into the decoder's cosines and sines.

    `frequencies` fp32 `[head_dim / 2]` (never less: rounding them to bf16 ruins long positions), `axes` int64
    `[head_dim / 2]`: which axis (0 time, 1 height, 2 width) each follows; `scale` multiplies cosines and sines.
    """

    frequencies: Tensor
    axes: Tensor
    scale: float = 1.0

    @classmethod
    def of(cls, config: TextConfig, device: torch.device) -> TextRope:
        """Make the tables of a model on `device`."""
        rope = config.rope
        powers = rope.theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
        axes = frequency_axes(rope.mrope_section, config.head_dim).to(device)
        if rope.yarn is None:
            return cls((1.0 / powers).to(device), axes)
        stretched = _stretch(powers, rope.yarn, rope.theta)
        return cls(stretched.to(device), axes, _attention_factor(rope.yarn))


def frequency_axes(mrope_section: tuple[int, int, int], head_dim: int) -> Tensor:
    """Return int64 `[head_dim / 2]`: which axis each frequency follows."""
    axes = torch.zeros(head_dim // 2, dtype=torch.int64)
    for axis in (1, 2):
        axes[axis : 3 * mrope_section[axis] : 3] = axis
    return axes


def _stretch(powers: Tensor, yarn: YarnScaling, theta: float) -> Tensor:
    """Return YaRN's frequencies fp32 of `powers` theta^(2j / head_dim), rounded as transformers rounds them."""
    low, high = _ramp_ends(yarn, theta, 2 * len(powers))
    ramp = ((torch.arange(len(powers), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return (1.0 / (yarn.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def _ramp_ends(yarn: YarnScaling, theta: float, head_dim: int) -> tuple[float, float]:
    """Return the frequency, counted from the fastest, up to which all stay, and the one from which all are divided."""

    def turning(times: float) -> float:
        return head_dim * math.log(yarn.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning(yarn.beta_fast), turning(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high if high != low else high + 0.001


def _attention_factor(yarn: YarnScaling) -> float:
    """Return what cosines and sines are multiplied by: attention grows a little sharper with the stretch."""

    def sharpened(mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(yarn.factor) + 1.0

    if yarn.attention_factor is not None:
        return yarn.attention_factor
    if yarn.mscale is not None and yarn.mscale_all_dim is not None:
        return sharpened(yarn.mscale) / sharpened(yarn.mscale_all_dim)
    return sharpened()


def text_rotation(positions: Tensor, rope: TextRope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[n, 1, head_dim]` in the activation dtype, for int32 positions `[3, n]`."""
    angles = positions.float()[rope.axes].T * rope.frequencies  # [n, head_dim / 2], each column from its own axis
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return (angles.cos() * rope.scale).to(dtype), (angles.sin() * rope.scale).to(dtype)


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
