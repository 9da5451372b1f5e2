"""Bytes and multiplications of a model's parts, from its manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from broker_pipeline.artifact_manifest import (
    DTYPE_BYTES,
    EMBED_FILE,
    FP8_DTYPE,
    VISION_FILE,
    Dtype,
    TensorRecord,
    WeightsManifest,
    block_file,
    scale_name,
)
from broker_pipeline.model_facts import ModelFacts

_EXPERTS = ".mlp.experts."
_TOWER_BLOCKS = ".blocks."
_PATCHES_PER_TOKEN = 4
"""A visual token is two by two patches."""
_WORKSPACE_BYTES = 2 * 10**9  # context, graphs, sampling, what the allocator loses; measured with 8B on an H200
_TOWER_WORKSPACE_BYTES = 670_000_000  # graphs, libraries; measured with 8B's tower on an H200
_PATCH_BYTES = 47_000  # of the tower's largest batch, or picture: the largest of the published towers
_BATCH_PATCHES = 12_288
_PATCH_PIXELS = 16**2
_WORKSPACE_TOKEN_VALUES = 60  # activations of the largest microbatch, in hidden states per token; likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """A model as the planner sees it: layers that are all alike, between an embedding and a head; and a tower.

    `*_weights` are counts of values that one token is multiplied with.
    """

    name: str
    num_layers: int
    hidden_size: int
    dtype_bytes: int
    layer_share: float = 1.0
    """Bytes of a layer's weights, as a part of what they take in the dtype: about half in FP8."""
    layer_weights: int
    """Of a layer without its experts."""
    expert_weights: int = 0
    """Of one expert of a layer."""
    num_experts: int = 0
    num_experts_per_token: int = 0
    embed_weights: int
    """Of the embedding, and of the head: they have the same shape."""
    is_tied: bool = False
    kv_values: int
    """Keys and values of a token in a layer."""
    kv_bytes: int
    """What these take of memory."""
    tower_weights: int
    tower_token_multiplications: int
    """Of the tower for one visual token."""
    most_picture_pixels: int = 2**20
    """Of a picture as the tower sees it, at most."""
    num_levels: int = 0
    """DeepStack levels: first layers that get visual rows of their own."""

    @classmethod
    def of(
        cls,
        manifest: WeightsManifest,
        facts: ModelFacts,
        dtype: Dtype | None = None,
        *,
        keeps_fp8: bool = True,
        kv_in_fp8: bool = False,
        most_picture_pixels: int = 2**20,
    ) -> Self:
        """Read the sizes of an artifact, as it is served in `dtype` (None: in its own).

        Matrices in FP8 stay so in bfloat16 on GPUs; with `keeps_fp8` False, or in float32, they are dequantised. With
        `kv_in_fp8` keys and values are codes, with two bytes of scale for each head.
        """
        stored, tower = manifest.stored_in(block_file(0)), manifest.stored_in(VISION_FILE)
        scales = {scale_name(record.name) for record in stored if record.dtype == FP8_DTYPE}
        layer = [record for record in stored if record.name not in scales]
        dtype_bytes = DTYPE_BYTES[dtype or facts.dtype]
        is_fp8 = bool(scales) and keeps_fp8 and dtype_bytes == DTYPE_BYTES["bfloat16"]
        stored_bytes = sum(record.size_bytes for record in stored)
        experts = [record for record in layer if _EXPERTS in record.name]
        num_experts = experts[0].shape[0] if experts else 0
        in_blocks = _num_values(record for record in tower if _TOWER_BLOCKS in record.name)
        in_mergers = _num_values(record for record in tower if "merger" in record.name)
        return cls(
            name=facts.name.rpartition("/")[2],
            num_layers=facts.num_layers,
            hidden_size=facts.hidden_size,
            dtype_bytes=dtype_bytes,
            layer_share=stored_bytes / (_num_values(layer) * dtype_bytes) if is_fp8 else 1.0,
            layer_weights=_num_values(layer) - _num_values(experts),
            expert_weights=_num_values(experts) // max(1, num_experts),
            num_experts=num_experts,
            num_experts_per_token=facts.num_experts_per_token,
            embed_weights=_num_values(manifest.stored_in(EMBED_FILE)),
            is_tied=any(record.tied_to is not None for record in manifest.tensors),
            kv_values=2 * facts.num_kv_heads * facts.head_dim,
            kv_bytes=2 * facts.num_kv_heads * (facts.head_dim + 2 if kv_in_fp8 else facts.head_dim * dtype_bytes),
            tower_weights=_num_values(tower),
            tower_token_multiplications=_PATCHES_PER_TOKEN * in_blocks + in_mergers,
            most_picture_pixels=most_picture_pixels,
            num_levels=facts.num_deepstack_levels,
        )

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer, experts included."""
        return round((self.layer_weights + self.num_experts * self.expert_weights) * self.layer_value_bytes)

    @property
    def layer_value_bytes(self) -> float:
        """Bytes of one value of a layer's weights."""
        return self.layer_share * self.dtype_bytes

    @property
    def is_fp8(self) -> bool:
        """Whether a layer's matrices stay in FP8 on the device, and meet rows in FP8 where there are many."""
        return self.layer_share < 1.0

    @property
    def tower_bytes(self) -> int:
        """Bytes of the tower."""
        return self.tower_weights * self.dtype_bytes

    @property
    def tower_workspace_bytes(self) -> int:
        """Bytes that a tower on a GPU needs beside its weights: a full batch, or one picture of the most pixels."""
        return _TOWER_WORKSPACE_BYTES + max(_BATCH_PATCHES, self.most_picture_pixels // _PATCH_PIXELS) * _PATCH_BYTES

    def workspace_bytes(self, max_step_tokens: int) -> int:
        """Return the bytes that a stage on a GPU needs beside weights and KV."""
        return _WORKSPACE_BYTES + _WORKSPACE_TOKEN_VALUES * max_step_tokens * self.hidden_size * self.dtype_bytes

    def num_experts_read(self, num_tokens: float, share: float) -> float:
        """Return how many experts of a layer so many tokens choose, at random among a `share` of them."""
        num_chosen = share * self.num_experts
        if num_chosen <= self.num_experts_per_token:
            return num_chosen
        missed: float = (1 - self.num_experts_per_token / num_chosen) ** num_tokens
        return num_chosen * (1 - missed)


def _num_values(records: Iterable[TensorRecord]) -> int:
    return sum(math.prod(record.shape) for record in records)
