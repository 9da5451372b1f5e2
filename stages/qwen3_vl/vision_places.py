"""Where the patches of a batch lie: position embeddings, rotations, and what attention sees.

Most pictures of a queue have one size, so what holds for one frame of a grid is kept on the device:

    grids of a batch   28x28, 28x28, 40x30      kept per (height, width)
                         │      │      │          embeddings [h * w, hidden], cosines and sines [h * w, head_dim / 2]
                         └──────┴──────┴─► concatenated: a few launches for the whole batch, whatever its size
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.device.host_copy import to_device
from stages.kernels.flash_attention import QUERIES_PER_TILE
from stages.qwen3_vl.patches import PatchGrid, interpolation_taps, patch_coordinates
from stages.qwen3_vl.rope import vision_rotation
from stages.qwen3_vl.vision_config import VisionConfig

MAX_KEPT_BYTES = 64 * 2**20
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BatchPlaces:
    """What all layers of one batch of N patches share.

    `embeddings` `[N, hidden]`; `cos` and `sin` fp32 `[N, head_dim / 2]`; `lengths` of the F frames; `tiles` of them on
    the device, as of `frame_tiles`.
    """

    embeddings: Tensor
    cos: Tensor
    sin: Tensor
    lengths: tuple[int, ...]
    tiles: Tensor


@dataclass(frozen=True, slots=True)
class _FramePlaces:
    """What holds for one frame of a grid."""

    embeddings: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def num_bytes(self) -> int:
        return self.embeddings.nbytes + self.cos.nbytes + self.sin.nbytes


class PatchPlaces:
    """Makes `BatchPlaces`; keeps those of grids used last, up to `max_kept_bytes` of the device's memory."""

    def __init__(self, config: VisionConfig, table: Tensor, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        """`table` holds the learned position embeddings `[cells, hidden]`."""
        self._config = config
        self._table = table
        self._max_kept_bytes = max_kept_bytes
        self._kept: OrderedDict[tuple[int, int], _FramePlaces] = OrderedDict()
        self.num_kept_bytes = 0

    def of(self, grids: Sequence[PatchGrid]) -> BatchPlaces:
        """Return the places of all patches of `grids`, in order."""
        frames, lengths = self._frames(grids), frame_lengths(grids)
        return BatchPlaces(
            embeddings=_joined([frame.embeddings for frame in frames]),
            cos=_joined([frame.cos for frame in frames]),
            sin=_joined([frame.sin for frame in frames]),
            lengths=lengths,
            tiles=to_device(torch.from_numpy(frame_tiles(lengths)), self._table.device),
        )

    def write(self, grids: Sequence[PatchGrid], out: BatchPlaces) -> None:
        """Write embeddings, cosines and sines of all patches of `grids` to the beginning of those of `out`."""
        frames, num_patches = self._frames(grids), sum(grid.num_patches for grid in grids)
        torch.cat([frame.embeddings for frame in frames], out=out.embeddings[:num_patches])
        torch.cat([frame.cos for frame in frames], out=out.cos[:num_patches])
        torch.cat([frame.sin for frame in frames], out=out.sin[:num_patches])

    def _frames(self, grids: Sequence[PatchGrid]) -> list[_FramePlaces]:
        return [places for grid in grids for places in [self._frame(grid)] * grid.frames]

    def _frame(self, grid: PatchGrid) -> _FramePlaces:
        key = grid.height, grid.width
        places = self._kept.get(key)
        if places is not None:
            self._kept.move_to_end(key)
            return places
        places = self._make(grid)
        if places.num_bytes <= self._max_kept_bytes:
            self._kept[key] = places
            self.num_kept_bytes += places.num_bytes
        while self.num_kept_bytes > self._max_kept_bytes:
            self.num_kept_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return places

    def _make(self, grid: PatchGrid) -> _FramePlaces:
        """Interpolate between the table's cells, bilinear; products and sum in fp32, rounded once."""
        table, device = self._table, self._table.device
        indexes, weights = (to_device(tap, device) for tap in interpolation_taps(grid, self._config))
        embeddings = (table[indexes] * weights[:, :, None]).sum(1).to(table.dtype)
        rows, columns = patch_coordinates(grid, self._config.spatial_merge_size)
        cos, sin = (to_device(part, device) for part in vision_rotation(rows, columns, self._config))
        return _FramePlaces(embeddings, cos, sin)


def frame_lengths(grids: Sequence[PatchGrid]) -> tuple[int, ...]:
    """Return the patches of every frame of `grids`."""
    return tuple(grid.frame_patches for grid in grids for _ in range(grid.frames))


def frame_tiles(lengths: Sequence[int], num_tiles: int | None = None) -> Ints:
    """Cut frames into tiles for `stages.kernels.flash_attention`: int32 `[3, T + 1]`, T as given, or as many as needed.

    Offsets of the tiles, ending with the number of patches; where the keys of each begin, and how many they are: those
    of its whole frame. Tiles beyond have no patches.
    """
    patches = np.asarray(lengths, np.int32)
    counts = -(-patches // QUERIES_PER_TILE)
    num_used, starts = int(counts.sum()), np.cumsum(patches) - patches
    within = np.arange(num_used) - np.repeat(np.cumsum(counts) - counts, counts)
    tiles = np.zeros((3, (num_used if num_tiles is None else num_tiles) + 1), np.int32)
    tiles[1, :num_used] = np.repeat(starts, counts)
    tiles[0, :num_used] = tiles[1, :num_used] + within * QUERIES_PER_TILE
    tiles[0, num_used:] = patches.sum()
    tiles[2, :num_used] = np.repeat(patches, counts)
    return tiles


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
