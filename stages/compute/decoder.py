"""The seam between a stage's sessions and its blocks: a range of decoder blocks as it is computed.

`Decoder` is all that sessions, admission and sampling know of the model. `eager.decoder` calls one operation after the
other and runs on every device; `fused.decoder` captures whole steps over the same weights, KV and plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from broker_pipeline.messages.activation import Segment
from stages.compute.kv.cache import KVCache
from stages.compute.microbatch import Microbatch, key_of
from stages.compute.sampling.logit_scan import LogitScan
from stages.compute.visual_injection import VisualInjection
from stages.qwen3_vl.attention import AttentionSpan


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
        return Computed(logits=self.logits[index], scan=replace(self.scan, greedy=self.scan.greedy[index]))


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


def attention_spans(segments: Sequence[Segment], kv: KVCache) -> list[AttentionSpan]:
    """Return where each segment's queries and keys lie, from the regions that the cache holds now.

    Drafts are by themselves, as the decode steps that they stand for: none sees anything of those behind it.
    """
    spans, first = [], 0
    for segment in segments:
        start = kv.region(key_of(segment)).start
        count, length = segment.count - segment.num_drafts, segment.start + segment.count
        spans.append(AttentionSpan(first, count, start, length - segment.num_drafts))
        first += count
        for back in range(segment.num_drafts - 1, -1, -1):
            spans.append(AttentionSpan(first, 1, start, length - back))
            first += 1
    return spans
