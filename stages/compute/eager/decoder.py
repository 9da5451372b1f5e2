"""A range of decoder blocks as it is computed: the seam behind which a faster engine can stand.

`Decoder` is all that sessions, admission and sampling know of the model. `EagerDecoder` calls one operation after the
other and runs on every device; an engine that captures whole steps implements the same two methods over the same
weights, KV and plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.messages.activation import Segment
from stages.compute.kv.cache import KVCache
from stages.compute.microbatch import Microbatch, key_of
from stages.compute.sampling.logit_scan import LogitScan, scan_logits
from stages.compute.visual_injection import VisualInjection
from stages.qwen3_vl.attention import Attention, AttentionPlan, AttentionSpan
from stages.qwen3_vl.moe import ExpertCompute, Linear, eager_experts
from stages.qwen3_vl.rope import frequency_axes, text_frequencies, text_rotation
from stages.qwen3_vl.text import BlockWeights, finish_block, project_qkv, rms_norm
from stages.qwen3_vl.text_config import TextConfig


@dataclass(frozen=True, slots=True)
class StageWeights:
    """A stage's tensors: `embed` `[V, H]` at the first stage, `norm` `[H]` and `head` `[V, H]` at the last."""

    blocks: tuple[BlockWeights, ...]
    embed: Tensor | None = None
    norm: Tensor | None = None
    head: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """What a step gave: `hidden` `[n, H]`, or at the last stage `logits` `[r, V]` of some tokens, and their scan.

    On a GPU they are complete in stream order, and may be overwritten by the next step.
    """

    hidden: Tensor | None = None
    logits: Tensor | None = None
    scan: LogitScan | None = None

    def logit_rows(self, index: Tensor) -> Computed:
        """Return only some rows of the logits, int64 `[r]`."""
        assert self.logits is not None, "there are logits to choose from"
        assert self.scan is not None, "logits come with their scan"
        scan = LogitScan(self.scan.greedy[index], self.scan.is_finite[index], self.scan.is_marked)
        return Computed(logits=self.logits[index], scan=scan)


class Decoder(Protocol):
    """Blocks `first_layer` and following, with their own KV."""

    @property
    def device(self) -> torch.device:
        """Where it computes; tensors given to it may lie elsewhere."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, hidden states and KV."""

    def step(self, batch: Microbatch, injection: VisualInjection | None, wanted: Sequence[int]) -> Computed:
        """Write the tokens' keys and values, and at the last stage give the logits of those at `wanted`.

        No session advances.
        """

    def forward(self, batch: Microbatch, injection: VisualInjection | None) -> Tensor:
        """Return hidden states `[n, H]` behind the last block; writes keys and values as `step` does."""

    def logits(self, hidden: Tensor, wanted: Sequence[int]) -> Tensor:
        """Return logits `[r, V]` of the tokens at `wanted`, in the model's dtype; at the last stage only."""


class EagerDecoder:
    """The decoder as plain operations."""

    def __init__(
        self,
        config: TextConfig,
        first_layer: int,
        weights: StageWeights,
        *,
        kv: KVCache,
        attention: Attention,
        experts: ExpertCompute = eager_experts,
        linear: Linear = F.linear,
    ) -> None:
        self.device = weights.blocks[0].q.device
        self.dtype = weights.blocks[0].q.dtype
        self._config = config
        self._first_layer = first_layer
        self._weights = weights
        self._kv = kv
        self._attention = attention
        self._experts = experts
        self._linear = linear
        self._frequencies = text_frequencies(config, self.device)
        self._axes = frequency_axes(config, self.device)

    def step(self, batch: Microbatch, injection: VisualInjection | None, wanted: Sequence[int]) -> Computed:
        """See `Decoder`."""
        hidden = self.forward(batch, injection)
        if self._weights.head is None:
            return Computed(hidden=hidden)
        if not wanted:
            return Computed()
        logits = self.logits(hidden, wanted)
        return Computed(logits=logits, scan=scan_logits(logits))

    def forward(self, batch: Microbatch, injection: VisualInjection | None) -> Tensor:
        """See `Decoder`."""
        if not batch.segments:
            return torch.empty(0, self._config.hidden_size, dtype=self.dtype, device=self.device)
        plan = AttentionPlan(attention_spans(batch.segments, self._kv), self.device)
        rotation = text_rotation(batch.positions.to(self.device), self._frequencies, self._axes, self.dtype)
        x = self._enter(batch, injection)
        for index, block in enumerate(self._weights.blocks):
            x = self._block(index, block, x, rotation, plan)
            x = x if injection is None else injection.add(x, self._first_layer + index)
        return x

    def logits(self, hidden: Tensor, wanted: Sequence[int]) -> Tensor:
        """See `Decoder`."""
        assert self._weights.norm is not None, "only the last stage has the final norm"
        assert self._weights.head is not None, "only the last stage has the head"
        chosen = hidden[torch.tensor(wanted, dtype=torch.int64, device=self.device)]
        return self._linear(rms_norm(chosen, self._weights.norm, self._config.rms_norm_eps), self._weights.head)

    def _enter(self, batch: Microbatch, injection: VisualInjection | None) -> Tensor:
        if batch.token_ids is None:
            assert batch.hidden is not None, "the microbatch has been checked"
            return batch.hidden.to(self.device)
        assert self._weights.embed is not None, "a first stage has the embedding"
        x = F.embedding(batch.token_ids.to(self.device), self._weights.embed)
        return x if injection is None else injection.replace(x)

    def _block(
        self, index: int, block: BlockWeights, x: Tensor, rotation: tuple[Tensor, Tensor], plan: AttentionPlan
    ) -> Tensor:
        q, k, v = project_qkv(block, x, rotation, self._config, self._linear)
        keys, values = self._kv.keys(index), self._kv.values(index)
        keys.index_copy_(0, plan.slots, k)
        values.index_copy_(0, plan.slots, v)
        attended = self._attention.attend_cached(q, keys, values, plan)
        return finish_block(block, x, attended, self._config, self._experts, self._linear)


def attention_spans(segments: Sequence[Segment], kv: KVCache) -> list[AttentionSpan]:
    """Return where each segment's queries and keys lie, from the regions that the cache holds now."""
    spans, first = [], 0
    for segment in segments:
        count = segment.count
        spans.append(AttentionSpan(first, count, kv.region(key_of(segment)).start, segment.start + count))
        first += count
    return spans
