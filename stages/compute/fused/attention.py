"""Attention of one microbatch on the GPU, by the fastest kernels or by those that are batch-invariant.

kernels          chunks                              decode tokens
FastKernels      torch's flash attention             in as many parts as fill the GPU; not over KV in FP8
InvariantKernels tiles of a kernel of this project   the same kernel, so that a query has the same bits in either
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.cached_heads import CachedHeads
from stages.compute.fused.step_inputs import DeviceInputs, TileRule
from stages.kernels.decode_attention import attend_decode_tokens, num_parts
from stages.kernels.flash_attention import attend_tiles
from stages.kernels.invariant_attention import attend_invariant_tiles, attend_invariant_tokens, queries_per_tile
from stages.qwen3_vl.text_config import TextConfig

_PARTS_BESIDE_CHUNKS = 2


class AttentionStep(Protocol):
    """Where a microbatch's queries look, the same in every layer; nothing here is read back from the device."""

    @property
    def slots(self) -> Tensor:
        """The cache slot of every token, int32 `[n]`."""

    def attend(self, q: Tensor, keys: CachedHeads, values: CachedHeads) -> Tensor:
        """Attend with queries `[n, heads, d]` to a layer's cache `[capacity, kv_heads, d]`; returns `[n, heads, d]`."""


class AttentionKernels(Protocol):
    """What attends, and how it wants chunks cut."""

    @property
    def tiles(self) -> TileRule:
        """How chunks are cut."""

    def over(self, inputs: DeviceInputs, *, max_chunk_keys: int = 0) -> AttentionStep:
        """Return the attention of one microbatch; no tile sees more than `max_chunk_keys`, 0 where there is none."""


class FastKernels:
    """The fastest: how a query is computed depends on what it comes with."""

    tiles = TileRule()

    def over(self, inputs: DeviceInputs, *, max_chunk_keys: int = 0) -> AttentionStep:
        """See `AttentionKernels`."""
        return _FastAttention(inputs, max_chunk_keys)


class InvariantKernels:
    """Those for `--deterministic`, and for KV in FP8: see `stages.kernels.invariant_attention`."""

    def __init__(self, config: TextConfig) -> None:
        self.tiles = TileRule(queries_per_tile(config.num_heads, config.num_kv_heads), is_aligned=True)

    def over(self, inputs: DeviceInputs, *, max_chunk_keys: int = 0) -> AttentionStep:
        """See `AttentionKernels`."""
        return _InvariantAttention(inputs, max_chunk_keys > 0)


@dataclass(frozen=True, slots=True)
class _FastAttention:
    inputs: DeviceInputs
    max_chunk_keys: int

    @property
    def slots(self) -> Tensor:
        return self.inputs.slots

    def attend(self, q: Tensor, keys: CachedHeads, values: CachedHeads) -> Tensor:
        assert isinstance(keys, Tensor), "these kernels know no codes"
        assert isinstance(values, Tensor), "as the keys"
        inputs = self.inputs
        out = self._attend_chunks(q, keys, values) if self.max_chunk_keys else torch.empty_like(q)
        places = inputs.decode_tokens, inputs.starts, inputs.lengths
        parts = _PARTS_BESIDE_CHUNKS if self.max_chunk_keys else num_parts(len(inputs.decode_tokens), keys.shape[1])
        attend_decode_tokens(q, keys, values, *places, out=out, parts=parts)
        return out

    def _attend_chunks(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with the chunks' queries, which come first; what stands for the others is to be written over."""
        tiles = self.inputs.chunk_offsets, self.inputs.chunk_starts, self.inputs.chunk_lengths
        return attend_tiles(q, keys, values, tiles, max_keys=self.max_chunk_keys, is_causal=True)


@dataclass(frozen=True, slots=True)
class _InvariantAttention:
    inputs: DeviceInputs
    has_chunks: bool

    @property
    def slots(self) -> Tensor:
        return self.inputs.slots

    def attend(self, q: Tensor, keys: CachedHeads, values: CachedHeads) -> Tensor:
        inputs, out = self.inputs, torch.empty_like(q)
        if self.has_chunks:
            tiles = inputs.chunk_offsets, inputs.chunk_starts, inputs.chunk_lengths
            attend_invariant_tiles(q, keys, values, tiles, out=out)
        attend_invariant_tokens(q, keys, values, inputs.decode_tokens, inputs.starts, inputs.lengths, out=out)
        return out
