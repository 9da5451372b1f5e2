"""The vision tower as graphs: pictures lie one behind the other in the next of a few numbers of patches.

    patches   [ picture a | picture b | a video's frames | beyond ]    N, the next size
    tiles     128 queries of one frame each, and more of none: the grid of attention is the graph's, not the pictures'
    rows      [ of a | of b | of the video | nobody's ]                embeddings and all levels, N / 4 of each

Launched one by one, the tower's kernels take the host 8 ms, during which no other thread has Python's lock. A graph is
one launch, with a handful of copies before it. What lies beyond is computed as well and changes nothing: products and
norms go row by row, and attention by tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.compute.fused.graph_set import GraphSet, sizes_up_to
from stages.device.host_copy import Staging
from stages.kernels.flash_attention import QUERIES_PER_TILE
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.vision import TowerEncoder, TowerOutput, VisionTower
from stages.qwen3_vl.vision_config import VisionConfig
from stages.qwen3_vl.vision_places import BatchPlaces, frame_lengths, frame_tiles

_STRIDES = ((1024, 128), (4096, 256), (16_384, 512))
"""The largest computes for longer than it takes to launch, and larger batches fill a GPU no better."""
_TILES_FOR_TILE = 3
"""How many tiles there may be for as many patches as one takes: enough for frames of 64 patches."""

_PROOF = PatchGrid(1, 8, 8)
_SEED = 7


def capture_tower(tower: VisionTower, max_patches: int, *, is_invariant: bool = False) -> TowerEncoder:
    """Return the tower with graphs for up to `max_patches` patches, where it can be captured."""
    return CapturedTower(tower, max_patches, is_invariant=is_invariant) if tower.can_be_captured else tower


class CapturedTower:
    """A tower whose batches are graphs where they fit into one, and are launched where they do not.

    Used on one thread, and in one stream, which is the current one.
    """

    @torch.inference_mode()
    def __init__(self, tower: VisionTower, max_patches: int, *, is_invariant: bool = False) -> None:
        """Build the graphs. They keep the memory that the largest one needs.

        With `is_invariant` only those are kept in which a picture has the same bits as in any other, wherever it lies.
        """
        self._tower = tower
        self._is_invariant = is_invariant
        sizes = sizes_up_to(min(max_patches, _STRIDES[-1][0]), _STRIDES)
        config, most = tower.config, sizes[-1]
        with torch.cuda.device(tower.device):
            self._patches = self._bytes(most, config.patch_values)
            self._stills = self._bytes(most, config.patch_values // config.temporal_patch_size)
            self._tiles = torch.zeros(3 * (_num_tiles(most) + 1), dtype=torch.int32, device=tower.device)
            self._staging = Staging(self._tiles)
            self._places = self._empty_places(most)
            self._rows = tower.empty_rows(most)
            self._graphs = GraphSet(sizes, self._forward, torch.cuda.graph_pool_handle())
            if is_invariant:
                self._graphs.keep(self._invariant_sizes())

    @property
    def config(self) -> VisionConfig:
        """See `TowerEncoder`."""
        return self._tower.config

    @property
    def device(self) -> torch.device:
        """See `TowerEncoder`."""
        return self._tower.device

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[PatchGrid]) -> TowerOutput:
        """See `VisionTower.encode`; what is returned is good until the next call, in the order of the stream."""
        self._tower.check(patches, grids)
        size = self.size_for(grids)
        if size is not None:
            return self._replayed(patches, grids, size)
        if self._is_invariant and len(grids) > 1:
            return self._one_by_one(patches, grids)
        return self._tower.encode(patches, grids)

    def _one_by_one(self, patches: Tensor, grids: Sequence[PatchGrid]) -> TowerOutput:
        pieces = torch.split(patches, [grid.num_patches for grid in grids])
        rows = [self.encode(piece, [grid]).rows.clone() for piece, grid in zip(pieces, grids, strict=True)]
        return TowerOutput(torch.cat(rows, dim=1))

    def _replayed(self, patches: Tensor, grids: Sequence[PatchGrid], size: int) -> TowerOutput:
        self._take_patches(patches)
        self._tower.places.write(grids, self._places)
        tiles = frame_tiles(frame_lengths(grids), _num_tiles(size)).reshape(-1)
        self._staging.next()[: len(tiles)] = tiles
        self._staging.send(len(tiles))
        self._graphs.replay(size)
        return TowerOutput(self._rows[:, : len(patches) // self.config.merge_factor])

    def size_for(self, grids: Sequence[PatchGrid]) -> int | None:
        """Return the size of the graph that pictures and videos of `grids` take; None if none does."""
        lengths = frame_lengths(grids)
        num_patches, num_tiles = sum(lengths), sum(-(-length // QUERIES_PER_TILE) for length in lengths)
        fitting = (size for size in self._graphs.sizes if num_patches <= size and num_tiles <= _num_tiles(size))
        return next(fitting, None)

    def _invariant_sizes(self) -> list[int]:
        """Return the sizes that give a picture the bits that the largest one gives it, at every place of a batch.

        Tried with as many copies of one picture as a graph takes: products are of as many rows as it has patches, and
        the library chooses a kernel by that, some of which add up in another order.
        """
        chance = torch.Generator(self.device).manual_seed(_SEED)
        values = self.config.patch_values
        picture = torch.randint(256, (_PROOF.num_patches, values), generator=chance, device=self.device)
        found = []
        expected: Tensor | None = None
        for size in reversed(self._graphs.sizes):
            num_copies = size // _PROOF.num_patches
            patches = picture.to(torch.uint8).repeat(num_copies, 1)
            rows = self._replayed(patches, [_PROOF] * num_copies, size).rows
            copies = rows.view(len(rows), num_copies, -1, rows.shape[-1])
            expected = copies[:, :1].clone() if expected is None else expected
            if torch.equal(copies, expected.expand_as(copies)):
                found.append(size)
        return found[::-1]

    def _take_patches(self, patches: Tensor) -> None:
        """Copy patches without waiting; a still picture's are shown for the whole of a temporal patch."""
        config, num_patches = self.config, len(patches)
        whole, stills = self._patches[:num_patches], self._stills[:num_patches]
        if patches.shape[1] == config.patch_values:
            whole.copy_(patches, non_blocking=True)
            return
        stills.copy_(patches, non_blocking=True)
        shape = num_patches, config.in_channels, -1, config.patch_size**2
        whole.view(shape).copy_(stills.view(shape))

    def _forward(self, size: int) -> None:
        """Compute `size` patches over the fixed buffers."""
        places, num_tiles = self._places, _num_tiles(size)
        cut = BatchPlaces(
            embeddings=places.embeddings[:size],
            cos=places.cos[:size],
            sin=places.sin[:size],
            lengths=(),
            tiles=self._tiles[: 3 * (num_tiles + 1)].view(3, -1),
        )
        self._tower.forward(self._patches[:size], cut, self._rows[:, : size // self.config.merge_factor])

    def _bytes(self, length: int, width: int) -> Tensor:
        return torch.zeros(length, width, dtype=torch.uint8, device=self.device)

    def _empty_places(self, length: int) -> BatchPlaces:
        config, device = self.config, self.device
        cos, sin = (torch.zeros(length, config.head_dim // 2, device=device) for _ in range(2))
        embeddings = torch.zeros(length, config.hidden_size, dtype=self._tower.dtype, device=device)
        return BatchPlaces(embeddings, cos, sin, lengths=(), tiles=self._tiles)


def _num_tiles(num_patches: int) -> int:
    return _TILES_FOR_TILE * num_patches // QUERIES_PER_TILE
