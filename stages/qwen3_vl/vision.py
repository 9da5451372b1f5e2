"""The vision tower: patch rows of any number of pictures and videos become visual rows of the text width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.errors import TensorMismatchError
from stages.compute.attention import Attention
from stages.qwen3_vl.config import VISION_LAYER_NORM_EPS, ModelConfig
from stages.qwen3_vl.patches import PatchGrid, interpolation_taps, patch_coordinates, per_frame
from stages.qwen3_vl.rope import rotate, vision_rotation
from stages.qwen3_vl.tensors import VISION_PREFIX


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """What the decoder needs of the pictures, one row per visual token, in prompt order.

    `embeds` `[r, H]` replaces the pad tokens' embeddings; `levels[j]` `[r, H]` is added after decoder layer j.
    """

    embeds: Tensor
    levels: tuple[Tensor, ...]


class VisionTower:
    """Weights by their hub names; inference only."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], attention: Attention) -> None:
        self.config = config.vision
        self._weights = {name.removeprefix(VISION_PREFIX): tensor for name, tensor in tensors.items()}
        self._attention = attention
        self._patch_matrix = self._weights["patch_embed.proj.weight"].flatten(1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._patch_matrix.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and rows."""
        return self._patch_matrix.dtype

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[PatchGrid]) -> EncodedRows:
        """Encodes the pictures and videos whose patch rows `[N, patch_values]` are concatenated, in order.

        Raises:
            TensorMismatchError: the rows do not fit the grids.
        """
        self._check(patches, grids)
        x = F.linear(patches.to(self.device, self.dtype), self._patch_matrix, self._bias("patch_embed.proj"))
        x = x + self._position_embeddings(grids)
        rotation = self._rotation(grids)
        lengths = [grid.frame_patches for grid in grids for _ in range(grid.frames)]
        levels: dict[int, Tensor] = {}
        for block in range(self.config.depth):
            x = self._block(f"blocks.{block}.", x, rotation, lengths)
            if block in self.config.deepstack_indexes:
                level = self.config.deepstack_indexes.index(block)
                levels[level] = self._merge_grouped(f"deepstack_merger_list.{level}.", x)
        ordered = tuple(levels[level] for level in range(self.config.num_deepstack_levels))
        return EncodedRows(self._merge_normed("merger.", x), ordered)

    def _check(self, patches: Tensor, grids: Sequence[PatchGrid]) -> None:
        merge = self.config.spatial_merge_size
        if any(grid.height % merge or grid.width % merge for grid in grids):
            raise TensorMismatchError(f"patch grids must be multiples of {merge} patches a side: {grids}")
        expected = (sum(grid.num_patches for grid in grids), self.config.patch_values)
        if tuple(patches.shape) != expected:
            raise TensorMismatchError(f"patch rows have shape {tuple(patches.shape)}; the grids need {expected}")

    def _bias(self, name: str) -> Tensor:
        return self._weights[name + ".bias"]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[name + ".weight"], self._bias(name))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight = self._weights[name + ".weight"]
        return F.layer_norm(x, weight.shape, weight, self._bias(name), VISION_LAYER_NORM_EPS)

    def _position_embeddings(self, grids: Sequence[PatchGrid]) -> Tensor:
        """Bilinear between the table's cells; products and sum in fp32, rounded once."""
        table = self._weights["pos_embed.weight"]
        embeddings = []
        for grid in grids:
            indexes, weights = (tap.to(self.device) for tap in interpolation_taps(grid, self.config))
            embeddings.append((table[indexes] * weights[:, :, None]).sum(1).to(self.dtype))
        return per_frame(embeddings, grids)

    def _rotation(self, grids: Sequence[PatchGrid]) -> tuple[Tensor, Tensor]:
        coordinates = [patch_coordinates(grid, self.config.spatial_merge_size) for grid in grids]
        rows = per_frame([rows for rows, _ in coordinates], grids).to(self.device)
        columns = per_frame([columns for _, columns in coordinates], grids).to(self.device)
        return vision_rotation(rows, columns, self.config)

    def _block(self, prefix: str, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
        x = x + self._attend(prefix, self._norm(prefix + "norm1", x), rotation, lengths)
        inner = F.gelu(self._linear(prefix + "mlp.linear_fc1", self._norm(prefix + "norm2", x)), approximate="tanh")
        return x + self._linear(prefix + "mlp.linear_fc2", inner)

    def _attend(self, prefix: str, x: Tensor, rotation: tuple[Tensor, Tensor], lengths: Sequence[int]) -> Tensor:
        qkv = self._linear(prefix + "attn.qkv", x)
        q, k, v = qkv.view(-1, 3, self.config.num_heads, self.config.head_dim).unbind(1)
        q = rotate(q.float(), *rotation).to(x.dtype)
        k = rotate(k.float(), *rotation).to(x.dtype)
        attended = self._attention.attend_frames(q, k, v, lengths)
        return self._linear(prefix + "attn.proj", attended.flatten(1))

    def _merge_normed(self, prefix: str, x: Tensor) -> Tensor:
        """The final merger: norm each patch, then group four."""
        return self._project(prefix, self._norm(prefix + "norm", x).view(-1, self.config.merged_size))

    def _merge_grouped(self, prefix: str, x: Tensor) -> Tensor:
        """A DeepStack merger: group four patches, then norm the group."""
        return self._project(prefix, self._norm(prefix + "norm", x.view(-1, self.config.merged_size)))

    def _project(self, prefix: str, grouped: Tensor) -> Tensor:
        return self._linear(prefix + "linear_fc2", F.gelu(self._linear(prefix + "linear_fc1", grouped)))
