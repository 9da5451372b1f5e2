"""A picture or video on its way to the tower: resized, not yet cut into patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.errors import ImageShapeError
from stages.prompt.preprocess import Patches, PixelBudget, cut_patches, fit_size, fit_video_size, resize
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision_config import VisionConfig


@dataclass(frozen=True, slots=True)
class VisualFrames:
    """Frames uint8 `[frames, 3, height, width]` of one picture (one frame) or video."""

    frames: Tensor
    vision: VisionConfig

    @property
    def grid(self) -> PatchGrid:
        """The grid of the patches that will be cut."""
        num_frames, _, height, width = self.frames.shape
        groups = -(-num_frames // self.vision.temporal_patch_size)
        return PatchGrid(groups, height // self.vision.patch_size, width // self.vision.patch_size)

    def to_patches(self) -> Patches:
        """Cut patch rows; the last of several frames is repeated to fill its temporal patch."""
        num_frames = self.frames.shape[0]
        missing = -num_frames % self.vision.temporal_patch_size if num_frames > 1 else 0
        frames = torch.cat((self.frames, self.frames[-1:].expand(missing, -1, -1, -1))) if missing else self.frames
        return cut_patches(frames, self.vision)


def image_frames(pixels: Tensor, vision: VisionConfig, budget: PixelBudget) -> VisualFrames:
    """Resize a picture, uint8 `[3, height, width]`.

    Raises:
        ImageShapeError: one side is too long for the other.
    """
    size = fit_size(pixels.shape[1], pixels.shape[2], vision.pixel_factor, budget)
    return VisualFrames(resize(pixels[None], size), vision)


def video_frames(frames: Iterable[Tensor], num_frames: int, vision: VisionConfig, budget: PixelBudget) -> VisualFrames:
    """Resize a video's frames, uint8 `[3, height, width]` each, one by one: they may be decoded as they are asked for.

    Raises:
        ImageShapeError: they differ in size, or one side is too long for the other.
    """
    resized: list[Tensor] = []
    first: torch.Size | None = None
    for index, pixels in enumerate(frames):
        first = first or pixels.shape
        if pixels.shape != first:
            (height, width), (old_height, old_width) = pixels.shape[1:], first[1:]
            raise ImageShapeError(
                f"frame {index} has {width} x {height} pixels, frame 0 has {old_width} x {old_height}"
            )
        size = fit_video_size(num_frames, pixels.shape[1], pixels.shape[2], vision.pixel_factor, budget)
        resized.append(resize(pixels[None], size))
    return VisualFrames(torch.cat(resized), vision)
