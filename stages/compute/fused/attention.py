"""Attention of one microbatch on the GPU: chunks by flash attention, decode tokens by a kernel of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.compute.fused.step_inputs import DeviceInputs
from stages.kernels.decode_attention import attend_decode_tokens


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Where the queries of a microbatch look; nothing here is read back from the device.

    `max_chunk` bounds the tokens of a chunk and `max_chunk_keys` what it sees; `parts` is how many pieces the keys of
    each decode token are cut into.
    """

    inputs: DeviceInputs
    parts: int
    max_chunk: int = 0
    max_chunk_keys: int = 0

    @property
    def slots(self) -> Tensor:
        """The cache slot of every token, int32 `[n]`."""
        return self.inputs.slots

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with queries `[n, heads, d]` to a layer's cache `[capacity, kv_heads, d]`; returns `[n, heads, d]`."""
        inputs = self.inputs
        out = self._attend_chunks(q, keys, values) if self.max_chunk else torch.empty_like(q)
        places = inputs.decode_tokens, inputs.starts, inputs.lengths
        attend_decode_tokens(q, keys, values, *places, out=out, parts=self.parts)
        return out

    def _attend_chunks(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with the chunks' queries, which come first; what stands for the others is to be written over."""
        return _flash(
            q,
            keys,
            values,
            self.inputs.chunk_offsets,
            self.inputs.chunk_starts,
            self.max_chunk,
            self.max_chunk_keys,
            0.0,
            True,
            False,
            scale=q.shape[-1] ** -0.5,
            seqused_k=self.inputs.chunk_lengths,
        )


def _flash(*args: Any, **options: Any) -> Tensor:
    """Call torch's own flash attention, which takes grouped heads and regions anywhere in the keys.

    It is called below torch's public functions, whose form for this (`torch.nn.attention.varlen.varlen_attn` with
    `seqused_k`) torch 2.11 does not have yet.
    """
    out: Tensor = torch.ops.aten._flash_attention_forward(*args, **options)[0]  # noqa: SLF001
    return out
