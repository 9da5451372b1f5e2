"""Cosines and sines of the decoder's positions, once a step for all layers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotation_kernel(
    time_ptr, height_ptr, width_ptr, frequencies_ptr, axes_ptr, cos_ptr, sin_ptr, scale, HALF: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, HALF)
    axis = tl.load(axes_ptr + lanes)
    time, height = tl.load(time_ptr + token), tl.load(height_ptr + token)
    width = tl.load(width_ptr + token)
    position = tl.where(axis == 0, time, tl.where(axis == 1, height, width))
    angle = position.to(tl.float32) * tl.load(frequencies_ptr + lanes)
    dtype = cos_ptr.dtype.element_ty
    cos, sin = (tl.cos(angle) * scale).to(dtype), (tl.sin(angle) * scale).to(dtype)
    for half in tl.static_range(2):
        place = token * 2 * HALF + half * HALF + lanes
        tl.store(cos_ptr + place, cos)
        tl.store(sin_ptr + place, sin)


def rotation(
    positions: tuple[Tensor, Tensor, Tensor], frequencies: Tensor, axes: Tensor, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[n, 1, d]` of int32 positions `[n]` in time, height and width.

    `frequencies` fp32, `axes` int64 `[d / 2]` and `scale` are of a `stages.qwen3_vl.rope.TextRope`; the reference is
    `text_rotation` there.
    """
    num_tokens, half = positions[0].shape[0], frequencies.shape[0]
    cos, sin = (torch.empty(num_tokens, 1, 2 * half, dtype=dtype, device=frequencies.device) for _ in range(2))
    if num_tokens:
        _rotation_kernel[(num_tokens,)](*positions, frequencies, axes, cos, sin, scale, HALF=half, num_warps=1)
    return cos, sin
