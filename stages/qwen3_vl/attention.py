"""Attention behind one seam: queries of a ragged microbatch against flat keys and values.

A microbatch packs the new tokens of several sessions; the keys and values of a session lie in one region of the flat
cache. One span per segment says where both are:

    packed queries   [ a a a | b | c c ]            a: prefill chunk of 3, b: decode step, c: chunk of 2
    flat cache       [ . a a a a a . . b b b b . c c c . ]
                         └ key_start of a, num_keys 5: query i of a sees keys 0 … 2 + i

Two kernels of the same meaning are given. `eager` rounds exactly as the reference implementation's eager attention, for
parity in bits. `sdpa` is faster. On a GPU in bf16, `auto` is neither: see `stages.compute.fused.decoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.cached_heads import CachedHeads

AttentionName = Literal["auto", "eager", "sdpa"]


class AttentionSpan(NamedTuple):
    """One segment: `num_queries` packed tokens from `query_start`, `num_keys` cache slots from `key_start`."""

    query_start: int
    num_queries: int
    key_start: int
    num_keys: int

    @property
    def queries(self) -> slice:
        """The segment's tokens in the packed microbatch."""
        return slice(self.query_start, self.query_start + self.num_queries)

    @property
    def keys(self) -> slice:
        """The session's slots in the flat cache, the segment's own tokens included."""
        return slice(self.key_start, self.key_start + self.num_keys)

    def visible(self, device: torch.device) -> Tensor:
        """Return bool `[num_queries, num_keys]`: the last query sees every key, each earlier one sees one less."""
        visible = torch.ones(self.num_queries, self.num_keys, dtype=torch.bool, device=device)
        return visible.tril(self.num_keys - self.num_queries)


class AttentionPlan:
    """What all layers of one microbatch share: spans, cache slots of the new tokens, masks."""

    def __init__(self, spans: Sequence[AttentionSpan], device: torch.device) -> None:
        self.spans = tuple(spans)
        new = [torch.arange(s.keys.stop - s.num_queries, s.keys.stop) for s in self.spans]
        self.slots = torch.cat(new).to(device)
        """int64 `[n]`: the cache slot of each packed token."""
        self._device = device
        self._masks: dict[AttentionSpan, Tensor] = {}

    def visible(self, span: AttentionSpan) -> Tensor:
        """Return the span's causal mask, made once for all layers."""
        if span not in self._masks:
            self._masks[span] = span.visible(self._device)
        return self._masks[span]


class Attention(Protocol):
    """A kernel for the decoder and one for the vision tower. Scale is head_dim ** -0.5 in both."""

    def attend_cached(self, q: Tensor, keys: CachedHeads, values: CachedHeads, plan: AttentionPlan) -> Tensor:
        """Attend causally: q `[n, heads, d]`, keys and values `[capacity, kv_heads, d]` or codes -> `[n, heads, d]`."""

    def attend_frames(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        """Attend within each of consecutive frames: all `[N, heads, d]` -> `[N, heads, d]`."""


class EagerAttention:
    """Scores in the activation dtype, softmax in fp32, probabilities rounded to the activation dtype."""

    def attend_cached(self, q: Tensor, keys: CachedHeads, values: CachedHeads, plan: AttentionPlan) -> Tensor:
        """See `Attention`."""
        group = q.shape[1] // keys.shape[1]
        attended = torch.empty_like(q)
        for span in plan.spans:
            k = keys[span.keys].transpose(0, 1).repeat_interleave(group, dim=0)
            v = values[span.keys].transpose(0, 1).repeat_interleave(group, dim=0)
            mask = plan.visible(span) if span.num_queries > 1 else None
            attended[span.queries] = _eager(q[span.queries], k, v, mask)
        return attended

    def attend_frames(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `Attention`."""
        frames = zip(*(torch.split(x, list(lengths)) for x in (q, k, v)), strict=True)
        return torch.cat([_eager(fq, fk.transpose(0, 1), fv.transpose(0, 1), None) for fq, fk, fv in frames])


def _eager(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attend in one segment: q `[m, heads, d]`, k and v `[heads, num_keys, d]` -> `[m, heads, d]`."""
    scores = torch.matmul(q.transpose(0, 1), k.transpose(1, 2)) * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(probabilities, v).transpose(0, 1)


class SdpaAttention:
    """`torch.nn.functional.scaled_dot_product_attention`, one call per segment or per run of equal frames."""

    def attend_cached(self, q: Tensor, keys: CachedHeads, values: CachedHeads, plan: AttentionPlan) -> Tensor:
        """See `Attention`."""
        attended = torch.empty_like(q)
        for span in plan.spans:
            k, v = keys[span.keys].transpose(0, 1)[None], values[span.keys].transpose(0, 1)[None]
            queries = q[span.queries]
            is_step = span.num_queries == 1
            attended[span.queries] = _sdpa_step(queries, k, v) if is_step else _sdpa_chunk(queries, k, v, span, plan)
        return attended

    def attend_frames(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        """See `Attention`."""
        attended, start = torch.empty_like(q), 0
        for length, run in groupby(lengths):
            num_frames = len(list(run))
            run_of_frames = slice(start, start + num_frames * length)
            fq, fk, fv = (x[run_of_frames].view(num_frames, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(fq, fk, fv)
            attended[run_of_frames] = out.transpose(1, 2).flatten(0, 1)
            start = run_of_frames.stop
        return attended


def _sdpa_step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to every key, as a decode step does: the query heads of one kv head are simply its queries."""
    grouped = q.reshape(1, k.shape[1], -1, q.shape[-1])
    return F.scaled_dot_product_attention(grouped, k, v).reshape(q.shape)


def _sdpa_chunk(q: Tensor, k: Tensor, v: Tensor, span: AttentionSpan, plan: AttentionPlan) -> Tensor:
    whole = span.num_queries == span.num_keys
    mask = None if whole else plan.visible(span)
    batch = q.transpose(0, 1)[None]
    out = F.scaled_dot_product_attention(batch, k, v, attn_mask=mask, is_causal=whole, enable_gqa=True)
    return out[0].transpose(0, 1)


def attention_named(name: AttentionName) -> Attention:
    """Return the implementation that a setting names."""
    return EagerAttention() if name == "eager" else SdpaAttention()
