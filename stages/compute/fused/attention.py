"""Attention of one microbatch on the GPU: chunks by flash attention, decode tokens by a kernel of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.compute.fused.step_inputs import DeviceInputs
from stages.kernels.decode_attention import attend_decode_tokens
from stages.kernels.flash_attention import attend_tiles


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Where the queries of a microbatch look; nothing here is read back from the device.

    `max_chunk_keys` bounds what a tile of a chunk sees, and is 0 where there are no chunks; `parts` is how many pieces
    the keys of each decode token are cut into.
    """

    inputs: DeviceInputs
    parts: int
    max_chunk_keys: int = 0

    @property
    def slots(self) -> Tensor:
        """The cache slot of every token, int32 `[n]`."""
        return self.inputs.slots

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with queries `[n, heads, d]` to a layer's cache `[capacity, kv_heads, d]`; returns `[n, heads, d]`."""
        inputs = self.inputs
        out = self._attend_chunks(q, keys, values) if self.max_chunk_keys else torch.empty_like(q)
        places = inputs.decode_tokens, inputs.starts, inputs.lengths
        attend_decode_tokens(q, keys, values, *places, out=out, parts=self.parts)
        return out

    def _attend_chunks(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with the chunks' queries, which come first; what stands for the others is to be written over."""
        tiles = self.inputs.chunk_offsets, self.inputs.chunk_starts, self.inputs.chunk_lengths
        return attend_tiles(q, keys, values, tiles, max_keys=self.max_chunk_keys, is_causal=True)
