"""The vision tower: patch rows of any number of pictures and videos become visual rows of the text width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.errors import TensorMismatchError
from stages.qwen3_vl.attention import Attention
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid, pixel_values
from stages.qwen3_vl.tensors import VISION_PREFIX
from stages.qwen3_vl.vision_config import VISION_LAYER_NORM_EPS
from stages.qwen3_vl.vision_ops import VisionOps, choose_vision_ops
from stages.qwen3_vl.vision_places import BatchPlaces, PatchPlaces


@dataclass(frozen=True, slots=True)
class TowerOutput:
    """What the decoder needs of pictures: their visual rows, one per visual token, in prompt order.

    `embeds` `[r, H]` replaces the pad tokens' embeddings; `levels[j]` `[r, H]` is added after decoder layer j.
    """

    embeds: Tensor
    levels: tuple[Tensor, ...]


class VisionTower:
    """Weights by their hub names; inference only. On a GPU, `encode` returns when the work is queued."""

    def __init__(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], attention: Attention, ops: VisionOps | None = None
    ) -> None:
        """Without `ops` the fastest are taken that mean what `attention` does."""
        self.config = config.vision
        self._weights = {name.removeprefix(VISION_PREFIX): tensor for name, tensor in tensors.items()}
        self._patch_matrix = self._weights["patch_embed.proj.weight"].flatten(1)
        self._places = PatchPlaces(config.vision, self._weights["pos_embed.weight"])
        self._ops = ops or choose_vision_ops(attention, self.config.head_dim, self.device, self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._patch_matrix.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and visual rows."""
        return self._patch_matrix.dtype

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[PatchGrid]) -> TowerOutput:
        """Encode pictures and videos whose patch rows are concatenated, in order: uint8 `[N, values]`.

        Patches on the host are copied without waiting where they are pinned. The work is queued on the current stream.

        Raises:
            TensorMismatchError: the patches do not fit the grids.
        """
        self._check(patches, grids)
        places = self._places.of(grids)
        x = self._embed(patches.to(self.device, non_blocking=True)) + places.embeddings
        normed = self._norm("blocks.0.norm1", x)
        levels: list[Tensor] = []
        for block in range(self.config.depth):
            x, normed = self._block(block, x, normed, places)
            if block in self.config.deepstack_indexes:
                merger = self.config.deepstack_indexes.index(block)
                levels.append(self._merge_grouped(f"deepstack_merger_list.{merger}.", x))
        return TowerOutput(self._project("merger.", normed.view(-1, self.config.merged_size)), tuple(levels))

    def _check(self, patches: Tensor, grids: Sequence[PatchGrid]) -> None:
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

    def _block(self, block: int, x: Tensor, normed: Tensor, places: BatchPlaces) -> tuple[Tensor, Tensor]:
        """Return the stream after this block, and normed for what follows: the next block, or the final merger."""
        prefix = f"blocks.{block}."
        following = f"blocks.{block + 1}.norm1" if block + 1 < self.config.depth else "merger.norm"
        x, normed = self._add_norm(prefix + "norm2", x, self._attend(prefix, normed, places))
        wide = prefix + "mlp.linear_fc1"
        inner = self._ops.gelu_linear(normed, self._weights[wide + ".weight"], self._bias(wide))
        return self._add_norm(following, x, self._linear(prefix + "mlp.linear_fc2", inner))

    def _add_norm(self, name: str, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        return self._ops.add_norm(x, delta, self._weights[name + ".weight"], self._bias(name))

    def _attend(self, prefix: str, normed: Tensor, places: BatchPlaces) -> Tensor:
        qkv = self._linear(prefix + "attn.qkv", normed).view(-1, 3, self.config.num_heads, self.config.head_dim)
        return self._linear(prefix + "attn.proj", self._ops.attend(qkv, places))

    def _merge_grouped(self, prefix: str, x: Tensor) -> Tensor:
        """Merge as DeepStack does: group four patches, then norm the group."""
        return self._project(prefix, self._norm(prefix + "norm", x.view(-1, self.config.merged_size)))

    def _project(self, prefix: str, grouped: Tensor) -> Tensor:
        return self._linear(prefix + "linear_fc2", F.gelu(self._linear(prefix + "linear_fc1", grouped)))
