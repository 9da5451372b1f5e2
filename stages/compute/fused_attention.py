"""Attention of one microbatch on the card: chunks by flash attention, single rows by the kernel for rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.compute.step_inputs import DeviceInputs, StepInputs
from stages.kernels.row_attention import FIXED_PARTS, attend_rows, num_parts


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Where the queries of a microbatch look; nothing here is read back from the device."""

    inputs: DeviceInputs
    num_chunk_tokens: int = 0
    max_chunk: int = 0
    max_chunk_keys: int = 0
    has_fixed_parts: bool = False
    """Whether rows are computed alike however many there are."""

    @classmethod
    def of(cls, inputs: DeviceInputs, host: StepInputs, *, has_fixed_parts: bool) -> FusedAttention:
        """For a microbatch whose inputs are on the device."""
        return cls(inputs, host.num_chunk_tokens, host.max_chunk, host.max_chunk_keys, has_fixed_parts)

    @property
    def slots(self) -> Tensor:
        """The cache row of every token, int32 `[n]`."""
        return self.inputs.slots

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries `[n, heads, d]` and the layer's cache `[capacity, kv_heads, d]` -> `[n, heads, d]`."""
        if self.num_chunk_tokens == q.shape[0]:
            return self._attend_chunks(q, keys, values)
        out = torch.empty_like(q)
        if self.num_chunk_tokens:
            chunks = slice(0, self.num_chunk_tokens)
            out[chunks] = self._attend_chunks(q[chunks], keys, values)
        rows, kv_heads = self.inputs.rows, keys.shape[1]
        parts = FIXED_PARTS if self.has_fixed_parts else num_parts(rows.shape[0], kv_heads)
        attend_rows(q, keys, values, rows, self.inputs.starts, self.inputs.lengths, out=out, parts=parts)
        return out

    def _attend_chunks(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
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
    """torch's own flash attention, which takes grouped heads and regions anywhere in the keys.

    It is called below torch's public functions, whose form for this (`torch.nn.attention.varlen.varlen_attn` with
    `seqused_k`) torch 2.11 does not have yet.
    """
    out: Tensor = torch.ops.aten._flash_attention_forward(*args, **options)[0]  # noqa: SLF001
    return out
