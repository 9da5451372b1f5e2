"""Pixels to patch rows: resizing and the merge-block order that the vision tower reads.

They stay one byte per colour, and those of a still picture hold its one frame: the tower normalises and repeats it
where it computes (`patches.pixel_values`), so that an eighth of the bytes is cut, kept and copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.errors import ImageShapeError, ModelConfigError
from broker_pipeline.pictures.rule import MAX_ASPECT_RATIO
from stages.qwen3_vl.config_fields import Fields
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision_config import VisionConfig

_BICUBIC = 3  # as Pillow numbers it
_VIDEO_DEFAULT = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
"""What transformers takes for Qwen3-VL where a file says nothing. For pictures it takes another model's."""


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """Bounds on pixels after resizing: of one picture, or of all frames of a video together."""

    min_pixels: int
    max_pixels: int

    @classmethod
    def from_json(
        cls, source: bytes | Mapping[str, Any], vision: VisionConfig, *, file: str, is_video: bool = False
    ) -> PixelBudget:
        """Read `preprocessor_config.json` or `video_preprocessor_config.json` as transformers does.

        `file` is named in errors. Bounds are those of `size`; of pictures those of the older `min_pixels` and
        `max_pixels` come first, which of videos are read over.

        Raises:
            ModelConfigError: a bound is missing, or the file asks for other patches or another normalisation than
                this engine implements.
        """
        fields = Fields.from_json(source, file=file, path=file)
        budget = cls(
            _bound(fields, "min_pixels", "shortest_edge", is_video=is_video),
            _bound(fields, "max_pixels", "longest_edge", is_video=is_video),
        )
        if budget.min_pixels > budget.max_pixels:
            name = "min_pixels" if fields.has("min_pixels") and not is_video else "size.shortest_edge"
            raise ModelConfigError(
                f"{file}.{name} is {budget.min_pixels}; expected at most longest_edge, {budget.max_pixels}",
                field=f"{file}.{name}",
            )
        for key in ("patch_size", "image_mean", "image_std"):  # left out, they mean other models' values
            fields.demand(key)
        for key, implemented in _implemented(vision).items():
            fields.require(key, implemented)
        return budget

    def with_bounds(self, min_pixels: int | None, max_pixels: int | None) -> PixelBudget:
        """Return this budget with the bounds that are given. They may cross, as transformers allows a call to."""
        return PixelBudget(min_pixels or self.min_pixels, max_pixels or self.max_pixels)


def _bound(fields: Fields, old: str, new: str, *, is_video: bool) -> int:
    if fields.has(old) and not is_video:
        return fields.positive(old)
    return _VIDEO_DEFAULT[new] if is_video and not fields.has("size") else fields.section("size").positive(new)


def _implemented(vision: VisionConfig) -> dict[str, object]:
    """Return the only values of settings, other than sizes, that this engine implements."""
    return {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "cap_pixels_per_frame": False,
    }


@dataclass(frozen=True, slots=True)
class Patches:
    """Patch rows of one picture or video, uint8 `[grid.num_patches, values]`.

    Values are `patch_values`, or of a still picture one frame's.
    """

    rows: Tensor
    grid: PatchGrid


def fit_size(height: int, width: int, factor: int, budget: PixelBudget) -> tuple[int, int]:
    """Return height and width that are multiples of `factor`, near the picture's shape, and within the budget.

    Raises:
        ImageShapeError: one side is more than 200 times the other.
    """
    return _fit(height, width, factor, budget, num_frames=1, counted_frames=1)


def fit_video_size(num_frames: int, height: int, width: int, factor: int, budget: PixelBudget) -> tuple[int, int]:
    """Do what `fit_size` does for frames whose pixels count together; frames below `factor` are enlarged first.

    Where pixels are compared with the budget, the number of frames is rounded to pairs.
    """
    scale = max(factor / height, factor / width, 1.0)
    counted = max(round(num_frames / 2) * 2, 2)
    enlarged = int(height * scale), int(width * scale)
    return _fit(*enlarged, factor, budget, num_frames=num_frames, counted_frames=counted)


def _fit(
    height: int, width: int, factor: int, budget: PixelBudget, *, num_frames: int, counted_frames: int
) -> tuple[int, int]:
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageShapeError(f"{width} x {height} pixels: one side may be {MAX_ASPECT_RATIO} times the other")
    fitted = [round(side / factor) * factor for side in (height, width)]
    pixels = counted_frames * fitted[0] * fitted[1]
    if pixels > budget.max_pixels:
        shrink = math.sqrt(num_frames * height * width / budget.max_pixels)
        fitted = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif pixels < budget.min_pixels:
        stretch = math.sqrt(budget.min_pixels / (num_frames * height * width))
        fitted = [math.ceil(side * stretch / factor) * factor for side in (height, width)]
    return fitted[0], fitted[1]


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 `[frames, 3, height, width]`, bicubic with antialiasing."""
    if tuple(frames.shape[2:]) == size:
        return frames
    return F.interpolate(frames, size=size, mode="bicubic", antialias=True)


def cut_patches(frames: Tensor, vision: VisionConfig) -> Patches:
    """Cut uint8 `[frames, 3, height, width]`, multiples of patch and merge sizes, to patch rows in merge-block order.

    Frames are one, of a still picture, or fill temporal patches. Each row is one cube of pixels, flattened as channel,
    frame, y, x.
    """
    num_frames, channels, height, width = frames.shape
    patch, merge = vision.patch_size, vision.spatial_merge_size
    temporal = vision.temporal_patch_size if num_frames > 1 else 1
    grid = PatchGrid(num_frames // temporal, height // patch, width // patch)
    blocks = (grid.height // merge, merge, patch, grid.width // merge, merge, patch)
    cubes = frames.view(grid.frames, temporal, channels, *blocks)
    #   0 group  1 frame  2 channel  3 block row  4 row in block  5 y  6 block column  7 column in block  8 x
    ordered = cubes.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return Patches(ordered.reshape(grid.num_patches, -1), grid)


def join_patches(patches: Sequence[Patches], vision: VisionConfig) -> list[Tensor]:
    """Return the patch rows of several pictures and videos, all of one width, so that they can be concatenated."""
    if len({each.rows.shape[1] for each in patches}) == 1:
        return [each.rows for each in patches]
    return [_shown_throughout(each.rows, vision) for each in patches]


def _shown_throughout(rows: Tensor, vision: VisionConfig) -> Tensor:
    """Turn the patch rows of a still picture into those of a video that shows it for a whole temporal patch."""
    if rows.shape[1] == vision.patch_values:
        return rows
    frame = rows.view(-1, vision.in_channels, 1, vision.patch_size**2)
    return frame.expand(-1, -1, vision.temporal_patch_size, -1).reshape(-1, vision.patch_values)
