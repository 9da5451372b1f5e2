"""The decoder in plain torch, one operation after the other; any device and dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.cached_heads import put_heads
from stages.compute.decoder import Computed, attention_spans
from stages.compute.kv.cache import KVCache
from stages.compute.microbatch import Microbatch
from stages.compute.sampling.logit_scan import scan_logits
from stages.compute.visual_injection import VisualInjection
from stages.qwen3_vl.attention import Attention, AttentionPlan
from stages.qwen3_vl.moe import ExpertCompute, Linear, eager_experts
from stages.qwen3_vl.rope import TextRope, text_rotation
from stages.qwen3_vl.text import BlockWeights, finish_block, project_qkv, rms_norm
from stages.qwen3_vl.text_config import TextConfig


@dataclass(frozen=True, slots=True)
class StageWeights:
    """A stage's tensors: `embed` `[V, H]` at the first stage, `norm` `[H]` and `head` `[V, H]` at the last."""

    blocks: tuple[BlockWeights, ...]
    embed: Tensor | None = None
    norm: Tensor | None = None
    head: Tensor | None = None


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
        self._rope = TextRope.of(config, self.device)

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
        rotation = text_rotation(batch.positions.to(self.device), self._rope, self.dtype)
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
        put_heads(keys, plan.slots, k)
        put_heads(values, plan.slots, v)
        attended = self._attention.attend_cached(q, keys, values, plan)
        return finish_block(block, x, attended, self._config, self._experts, self._linear)
