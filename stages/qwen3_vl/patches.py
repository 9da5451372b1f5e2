"""Patch grids: where each patch row of a picture or video lies, and its place in the learned position table.

Rows come in merge-block order, so that every four consecutive rows are one visual token (merge size 2):

    columns   0  1  2  3
    row 0     0  1  4  5
    row 1     2  3  6  7
    row 2     8  9 12 13
    row 3    10 11 14 15

and frames (pairs of pictures) follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.qwen3_vl.config import VisionConfig


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
    """Row and column of each patch of one frame, int64 `[height * width]`, in merge-block order."""
    cells = torch.arange(grid.frame_patches).view(grid.height, grid.width)
    blocks = cells.view(grid.height // merge, merge, grid.width // merge, merge).transpose(1, 2)
    order = blocks.reshape(-1)
    return order // grid.width, order % grid.width


def interpolation_taps(grid: PatchGrid, config: VisionConfig) -> tuple[Tensor, Tensor]:
    """The four table rows that surround each patch of one frame: indexes int64 and weights fp32, `[h * w, 4]`.

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
    """The two neighbours on one axis of `side` cells, and how near each is, `[n, 2]` both."""
    place = index.to(torch.float32) * (side - 1) / max(length - 1, 1)
    low = place.floor()
    taps = torch.stack((low, low + 1), dim=1)
    weights = 1 - (place[:, None] - taps).abs()
    return taps.long().clamp(max=side - 1), weights


def per_frame(values: Sequence[Tensor], grids: Sequence[PatchGrid]) -> Tensor:
    """Concatenates what holds for one frame of each grid, repeated for all its frames, along rows."""
    repeated = [value.repeat(grid.frames, *[1] * (value.dim() - 1)) for value, grid in zip(values, grids, strict=True)]
    return torch.cat(repeated)
