"""Patch grids: where each patch row of a picture or video lies, and its place in the learned position table.

They come in merge-block order, so that every four consecutive ones are one visual token (merge size 2):

    columns   0  1  2  3
    row 0     0  1  4  5
    row 1     2  3  6  7
    row 2     8  9 12 13
    row 3    10 11 14 15

and frames (pairs of pictures) follow each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.errors import TensorMismatchError
from stages.qwen3_vl.vision_config import VisionConfig


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Size of one picture or video in patches: `frames` temporal groups of `height` x `width` patches."""

    frames: int
    height: int
    width: int

    @property
    def num_patches(self) -> int:
        """Patch rows in all."""
        return self.frames * self.height * self.width

    @property
    def frame_patches(self) -> int:
        """Patch rows of one temporal group."""
        return self.height * self.width


def patch_coordinates(grid: PatchGrid, merge: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each patch of one frame, int64 `[height * width]`, in merge-block order."""
    cells = torch.arange(grid.frame_patches).view(grid.height, grid.width)
    blocks = cells.view(grid.height // merge, merge, grid.width // merge, merge).transpose(1, 2)
    order = blocks.reshape(-1)
    return order // grid.width, order % grid.width


def interpolation_taps(grid: PatchGrid, config: VisionConfig) -> tuple[Tensor, Tensor]:
    """Return the four table cells around each patch of one frame: indexes int64 and weights fp32, `[h * w, 4]`.

    The table's corners are aligned with the picture's. `F.interpolate` has the same convention, but its coordinates
    are off by up to 3e-5.
    """
    rows, columns = patch_coordinates(grid, config.spatial_merge_size)
    row_taps, row_weights = _axis_taps(rows, grid.height, config.position_grid_side)
    column_taps, column_weights = _axis_taps(columns, grid.width, config.position_grid_side)
    indexes = row_taps[:, :, None] * config.position_grid_side + column_taps[:, None, :]
    weights = row_weights[:, :, None] * column_weights[:, None, :]
    return indexes.flatten(1), weights.flatten(1)


def _axis_taps(index: Tensor, length: int, side: int) -> tuple[Tensor, Tensor]:
    """Return the two neighbours on one axis of `side` cells, and how near each is, `[n, 2]` both."""
    place = index.to(torch.float32) * (side - 1) / max(length - 1, 1)
    low = place.floor()
    taps = torch.stack((low, low + 1), dim=1)
    weights = 1 - (place[:, None] - taps).abs()
    return taps.long().clamp(max=side - 1), weights


def check_patch_rows(rows: Tensor, config: VisionConfig) -> None:
    """Raise TensorMismatchError unless these are patch rows, of still pictures or not."""
    frames, values = config.temporal_patch_size, config.patch_values
    if rows.dtype != torch.uint8 or rows.dim() != 2 or rows.shape[1] not in {values, values // frames}:
        raise TensorMismatchError(
            f"patch rows are {rows.dtype} {list(rows.shape)} and must be uint8 with {values} values, "
            f"or {values // frames} of a still picture"
        )


def pixel_values(rows: Tensor, config: VisionConfig) -> Tensor:
    """Turn uint8 patch rows into what the tower reads: fp32 `[N, patch_values]` in [-1, 1].

    Mean and deviation are 0.5 of the unit range, fused into one step. Rows with one frame are of still pictures,
    which are shown for a whole temporal patch.

    Raises:
        TensorMismatchError: rows of another width or dtype.
    """
    check_patch_rows(rows, config)
    frames, values = config.temporal_patch_size, config.patch_values
    # a GPU divides by a number of the host's as it multiplies by its inverse, which rounds twice
    half = torch.full((), 127.5, device=rows.device)
    levels = rows.to(torch.float32).sub_(127.5).div_(half)
    if rows.shape[1] == values:
        return levels
    shown = levels.view(-1, config.in_channels, 1, config.patch_size**2).expand(-1, -1, frames, -1)
    return shown.reshape(-1, values)
