"""Weights of random numbers, made where they are used: their values say nothing, their sizes all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.qwen3_vl.tensors import Shapes


def draw_weights(shapes: Shapes, device: torch.device, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Tensors by name on `device`: matrices scaled so that signals keep their size, norms near one."""
    chance = torch.Generator(device).manual_seed(seed)
    return {name: _draw(name, shape, chance, device, dtype) for name, shape in shapes.items()}


def _draw(
    name: str, shape: tuple[int, ...], chance: torch.Generator, device: torch.device, dtype: torch.dtype
) -> Tensor:
    tensor = torch.empty(shape, device=device, dtype=dtype)
    if len(shape) == 1:
        return tensor.zero_() if name.endswith(".bias") else tensor.fill_(1.0)
    fan_in = shape[-1] if ".experts." in name else math.prod(shape[1:])
    deviation = 0.5 if name.endswith(("embed_tokens.weight", "pos_embed.weight")) else 1 / math.sqrt(fan_in)
    return tensor.normal_(0.0, deviation, generator=chance)
