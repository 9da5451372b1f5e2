"""The vision tower: patch rows of any number of pictures and videos become visual rows of the text width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.errors import TensorMismatchError
from stages.qwen3_vl.attention import Attention
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid, check_patch_rows, pixel_values
from stages.qwen3_vl.tensors import VISION_PREFIX
from stages.qwen3_vl.vision_config import VISION_LAYER_NORM_EPS, VisionConfig
from stages.qwen3_vl.vision_ops import FusedVisionOps, Product, VisionOps, choose_vision_ops
from stages.qwen3_vl.vision_places import BatchPlaces, PatchPlaces
from stages.weights.fp8_matrix import Weight

if TYPE_CHECKING:  # Triton is only where CUDA is
    from stages.kernels.codes.row_codes import Rows


@dataclass(frozen=True, slots=True)
class TowerOutput:
    """What the decoder needs of pictures: their visual rows, one per visual token, in prompt order.

    `rows` `[1 + levels, r, H]` are `embeds` and all `levels`.
    """

    rows: Tensor

    @property
    def embeds(self) -> Tensor:
        """What replaces the pad tokens' embeddings, `[r, H]`."""
        return self.rows[0]

    @property
    def levels(self) -> tuple[Tensor, ...]:
        """What is added after decoder layer j, for each j, `[r, H]`."""
        return tuple(self.rows[1:])

    def split(self, counts: Sequence[int]) -> list[TowerOutput]:
        """Copy the visual rows of each picture, so many, into memory of their own."""
        parts = torch.split(self.rows, list(counts), dim=1)
        return [TowerOutput(part.clone(memory_format=torch.contiguous_format)) for part in parts]

    @classmethod
    def joined(cls, pictures: Sequence[TowerOutput]) -> TowerOutput:
        """Copy those of several pictures into one."""
        return cls(torch.cat([picture.rows for picture in pictures], dim=1))


class TowerEncoder(Protocol):
    """A tower, however its work is launched."""

    @property
    def config(self) -> VisionConfig:
        """Its sizes."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def encode(self, patches: Tensor, grids: Sequence[PatchGrid]) -> TowerOutput:
        """See `VisionTower.encode`; the next call may overwrite what this one returns."""


class VisionTower:
    """Weights by their hub names; inference only. On a GPU, `encode` returns when the work is queued."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Weight], attention: Attention, ops: VisionOps | None = None
    ) -> None:
        """Without `ops` the fastest are taken that mean what `attention` does; those of a GPU take blocks in FP8."""
        self.config = config.vision
        self._matrices = {name.removeprefix(VISION_PREFIX): weight for name, weight in tensors.items()}
        self._weights = {name: weight for name, weight in self._matrices.items() if isinstance(weight, Tensor)}
        self._patch_matrix = self._weights["patch_embed.proj.weight"].flatten(1)
        self.places = PatchPlaces(config.vision, self._weights["pos_embed.weight"])
        self._ops = ops or choose_vision_ops(attention, self.config.head_dim, self.device, self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._patch_matrix.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and visual rows."""
        return self._patch_matrix.dtype

    @property
    def can_be_captured(self) -> bool:
        """Whether `forward` launches the same kernels for any pictures of together so many patches."""
        return isinstance(self._ops, FusedVisionOps)

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[PatchGrid]) -> TowerOutput:
        """Encode pictures and videos whose patch rows are concatenated, in order: uint8 `[N, values]`.

        Patches on the host are copied without waiting where they are pinned. The work is queued on the current stream.

        Raises:
            TensorMismatchError: the patches do not fit the grids.
        """
        self.check(patches, grids)
        rows = self.empty_rows(len(patches))
        self.forward(patches.to(self.device, non_blocking=True), self.places.of(grids), rows)
        return TowerOutput(rows)

    def empty_rows(self, num_patches: int) -> Tensor:
        """Return room for the visual rows of so many patches, `[1 + levels, num_patches / merge_factor, H]`."""
        shape = 1 + self.config.num_deepstack_levels, num_patches // self.config.merge_factor
        return torch.empty(*shape, self.config.out_hidden_size, dtype=self.dtype, device=self.device)

    def forward(self, patches: Tensor, places: BatchPlaces, rows: Tensor) -> None:
        """Queue the computation of N patches, uint8 `[N, values]` on the device, that lie at `places`.

        `rows` `[1 + levels, N / merge_factor, H]` is written to.
        """
        x = self._embed(patches) + places.embeddings
        normed: Rows = self._norm("blocks.0.norm1", x)
        level = 0
        for block in range(self.config.depth):
            x, normed = self._block(block, x, normed, places)
            if block in self.config.deepstack_indexes:
                merger, level = self.config.deepstack_indexes.index(block), level + 1
                rows[level].copy_(self._merge_grouped(f"deepstack_merger_list.{merger}.", x))
        assert isinstance(normed, Tensor), "mergers are not in FP8"
        rows[0].copy_(self._project("merger.", normed.view(-1, self.config.merged_size)))

    def check(self, patches: Tensor, grids: Sequence[PatchGrid]) -> None:
        """Raise TensorMismatchError unless the patches fit the grids."""
        check_patch_rows(patches, self.config)
        merge = self.config.spatial_merge_size
        if any(grid.height % merge or grid.width % merge for grid in grids):
            raise TensorMismatchError(f"patch grids must be multiples of {merge} patches a side: {grids}")
        expected = sum(grid.num_patches for grid in grids)
        if patches.shape[0] != expected:
            raise TensorMismatchError(f"there are {patches.shape[0]} patch rows; the grids need {expected}")

    def _embed(self, patches: Tensor) -> Tensor:
        pixels = pixel_values(patches, self.config).to(self.dtype)
        return F.linear(pixels, self._patch_matrix, self._bias("patch_embed.proj"))

    def _bias(self, name: str) -> Tensor:
        return self._weights[name + ".bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[name + ".weight"], self._bias(name))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self._weights[name + ".weight"]
        return F.layer_norm(x, weight.shape, weight, self._bias(name), VISION_LAYER_NORM_EPS)

    def _block(self, block: int, x: Tensor, normed: Rows, places: BatchPlaces) -> tuple[Tensor, Rows]:
        """Return the stream after this block, and normed for what follows: the next block, or the final merger."""
        prefix, is_last = f"blocks.{block}.", block + 1 == self.config.depth
        wide, narrow = prefix + "mlp.linear_fc1", prefix + "mlp.linear_fc2"
        x, normed = self._add_norm(prefix + "norm2", x, self._attend(prefix, normed, places), wide)
        inner = self._ops.gelu_linear(normed, self._matrix(wide), self._bias(wide), self._matrix(narrow))
        norm = "merger.norm" if is_last else f"blocks.{block + 1}.norm1"
        following = "merger.linear_fc1" if is_last else f"blocks.{block + 1}.attn.qkv"
        return self._add_norm(norm, x, self._product(narrow, inner), following)

    def _add_norm(self, name: str, x: Tensor, delta: Product, following: str) -> tuple[Tensor, Rows]:
        weight = self._weights[name + ".weight"]
        return self._ops.add_norm(x, delta, weight, self._bias(name), self._matrix(following))

    def _attend(self, prefix: str, normed: Rows, places: BatchPlaces) -> Product:
        attended = self._ops.attend(self._product(prefix + "attn.qkv", normed), self.config.head_dim, places)
        return self._product(prefix + "attn.proj", attended)

    def _product(self, name: str, x: Rows) -> Product:
        return self._ops.linear(x, self._matrix(name), self._bias(name))

    def _matrix(self, name: str) -> Weight:
        return self._matrices[name + ".weight"]

    def _merge_grouped(self, prefix: str, x: Tensor) -> Tensor:
        """Merge as DeepStack does: group four patches, then norm the group."""
        return self._project(prefix, self._norm(prefix + "norm", x.view(-1, self.config.merged_size)))

    def _project(self, prefix: str, grouped: Tensor) -> Tensor:
        return self._linear(prefix + "linear_fc2", F.gelu(self._linear(prefix + "linear_fc1", grouped)))
