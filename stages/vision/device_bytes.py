"""How much of its GPU a vision worker takes alongside the tower's weights, so that a stage leaves it free."""

from __future__ import annotations

import torch

from stages.prompt.preprocess import PixelBudget
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.vision_places import MAX_KEPT_BYTES

_SLACK = 1.25
"""What the allocator cannot use between blocks of different sizes."""
_LIBRARIES_BYTES = 256 * 2**20
"""Workspaces of the libraries on a stream of its own, and compiled kernels."""


def patch_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the most memory that the tower holds for one patch at a time: either at the start or in a block's MLP.

    Alongside are, all the time, the patch itself, its place, and its share of the visual rows.
    """
    vision = config.vision
    pixels = vision.patch_values * (4 + 4 + dtype.itemsize)  # in fp32, repeated over the frames, in the tower's dtype
    block = (7 * vision.hidden_size + vision.intermediate_size) * dtype.itemsize  # measured: what attention cuts stays
    rows = (1 + vision.num_deepstack_levels) * vision.out_hidden_size * dtype.itemsize // vision.merge_factor
    places = vision.hidden_size * dtype.itemsize + vision.head_dim * 4
    return max(pixels, block) + vision.patch_values + places + rows


def vision_device_bytes(config: ModelConfig, dtype: torch.dtype, budget: PixelBudget, max_batch_patches: int) -> int:
    """Return the bytes of the largest batch: one that is full, or one picture of the most pixels that are allowed."""
    largest_picture = budget.max_pixels // config.vision.patch_size**2
    num_patches = max(max_batch_patches, largest_picture)
    return int(num_patches * patch_bytes(config, dtype) * _SLACK) + MAX_KEPT_BYTES + _LIBRARIES_BYTES
