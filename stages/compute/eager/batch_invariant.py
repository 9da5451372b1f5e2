"""The batch-invariant decoder of a CPU, for `--deterministic`: no token depends on its neighbours.

Libraries choose how to add up a product by its size, so that a token in a large product may differ in its last digits
from the same token in a small one. One token at a time is always the same size. Slow, and meant for checking.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.cached_heads import CachedHeads
from stages.qwen3_vl.attention import AttentionPlan, AttentionSpan, SdpaAttention
from stages.qwen3_vl.moe import eager_experts


def batch_invariant_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply `[n, in]` by `[out, in]`, token by token."""
    return torch.cat([F.linear(token, weight) for token in torch.split(x, 1)]) if len(x) else F.linear(x, weight)


def batch_invariant_experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Compute an `ExpertCompute`, token by token."""
    tokens = zip(torch.split(x, 1), torch.split(chosen, 1), torch.split(weights, 1), strict=True)
    return torch.cat([eager_experts(*token, gate_up, down) for token in tokens]) if len(x) else torch.zeros_like(x)


class BatchInvariantAttention(SdpaAttention):
    """Each token of a chunk as if it were a decode step: it attends to what is before it and to itself."""

    def attend_cached(self, q: Tensor, keys: CachedHeads, values: CachedHeads, plan: AttentionPlan) -> Tensor:
        """See `Attention`."""
        return super().attend_cached(q, keys, values, AttentionPlan(_by_token(plan.spans), q.device))


def _by_token(spans: Sequence[AttentionSpan]) -> list[AttentionSpan]:
    return [
        AttentionSpan(span.query_start + index, 1, span.key_start, span.num_keys - span.num_queries + index + 1)
        for span in spans
        for index in range(span.num_queries)
    ]
