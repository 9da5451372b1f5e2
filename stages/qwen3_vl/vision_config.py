"""The vision tower's part of a model's configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stages.qwen3_vl.config_fields import Fields

VISION_ROPE_THETA = 10000.0
VISION_LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision tower. Sizes of patches are in pixels, `temporal_patch_size` in frames."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int
    num_position_embeddings: int
    deepstack_indexes: tuple[int, ...]
    """The block that each merger takes its rows from; levels are in the order of blocks, whatever the order here."""
    rope_theta: float = VISION_ROPE_THETA

    @classmethod
    def read(cls, fields: Fields) -> VisionConfig:
        """Read the section `vision_config`.

        Raises:
            ModelConfigError: names the field that is missing, of a wrong type or out of range.
        """
        fields.require("hidden_act", "gelu_pytorch_tanh")
        vision = cls(
            depth=fields.positive("depth"),
            hidden_size=fields.positive("hidden_size"),
            num_heads=fields.positive("num_heads"),
            intermediate_size=fields.positive("intermediate_size"),
            out_hidden_size=fields.positive("out_hidden_size"),
            patch_size=fields.positive("patch_size"),
            temporal_patch_size=fields.positive("temporal_patch_size"),
            spatial_merge_size=fields.positive("spatial_merge_size"),
            in_channels=fields.positive("in_channels"),
            num_position_embeddings=fields.positive("num_position_embeddings"),
            deepstack_indexes=fields.integers("deepstack_visual_indexes"),
            rope_theta=_read_rope_theta(fields),
        )
        _check(fields, vision)
        return vision

    @property
    def num_deepstack_levels(self) -> int:
        """How many decoder layers, from layer 0 on, receive visual rows of their own."""
        return len(self.deepstack_indexes)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def position_grid_side(self) -> int:
        """The learned position table is a square of this many cells a side."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def patch_values(self) -> int:
        """Values of one flattened patch row: channels x frames x rows x columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size

    @property
    def merge_factor(self) -> int:
        """How many patch rows become one visual token."""
        return self.spatial_merge_size * self.spatial_merge_size

    @property
    def merged_size(self) -> int:
        """Channels of one merged group of patches before the projection to the text width."""
        return self.hidden_size * self.merge_factor

    @property
    def pixel_factor(self) -> int:
        """Heights and widths of resized pictures are multiples of this many pixels."""
        return self.patch_size * self.spatial_merge_size


def _read_rope_theta(fields: Fields) -> float:
    """Read what the hub's files are silent about and transformers 5 writes out."""
    if not fields.has("rope_parameters"):
        return VISION_ROPE_THETA
    rope = fields.section("rope_parameters")
    rope.require("rope_type", "axial")
    return rope.number("rope_theta")


def _check(fields: Fields, vision: VisionConfig) -> None:
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise fields.error("num_heads", "a divisor of hidden_size that leaves heads of a multiple of 4")
    if vision.position_grid_side**2 != vision.num_position_embeddings:
        raise fields.error("num_position_embeddings", "a square number")
    indexes = vision.deepstack_indexes
    if len(set(indexes)) != len(indexes) or any(index >= vision.depth for index in indexes):
        raise fields.error("deepstack_visual_indexes", f"different block indexes below depth, {vision.depth}")
