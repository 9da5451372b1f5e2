"""The fused decoder against the eager one: the same weights, the same microbatches, within rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.workers import BlockRange
from stages.compute.checked_tensors import CheckedTensors
from stages.compute.eager.decoder import EagerDecoder, StageWeights
from stages.compute.fused.attention import FastKernels, InvariantKernels
from stages.compute.fused.blocks import PackedBlock
from stages.compute.fused.decoder import FusedDecoder
from stages.compute.fused.model import FusedModel, FusedWeights
from stages.compute.kv.cache import KVCache
from stages.compute.loading import stage_tensor_names
from stages.compute.microbatch import Microbatch, wanted_rows
from stages.compute.visual_injection import VisualInjection
from stages.kernels.activation import silu_mul
from stages.qwen3_vl.attention import SdpaAttention
from stages.qwen3_vl.moe import eager_experts, route
from tests.kit.models.tiny_stages import tiny_config, tiny_tensors

CAPACITY = 128


def _experts(normed: Tensor, mlp, num_chosen: int) -> Tensor:
    chosen, weights = route(normed, mlp.router, num_chosen)
    return eager_experts(normed, chosen, weights, mlp.gate_up, mlp.down)


class PlainLinear:
    """The kernels of products have tests of their own, and take long in the interpreter."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    def rows_for(self, like: Tensor, weight: Tensor) -> Tensor:
        return like.new_empty(len(like), weight.shape[1])

    def gated(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return silu_mul(F.linear(x, gate_up), self.rows_for(x, down))


class Pair:
    """Both decoders of the whole tiny model, each with its own cache."""

    def __init__(self, device: torch.device, *, moe: bool) -> None:
        config = tiny_config(moe=moe)
        text, dtype = config.text, torch.float32
        shapes = stage_tensor_names(config, 0, text.num_layers)
        own = {name: tiny_tensors(moe=moe)[name] for name in shapes}
        source = CheckedTensors(own, shapes, dtype, device)
        blocks = [source.block(config, layer) for layer in range(text.num_layers)]
        ends = source.ends(config, BlockRange(start=0, stop=text.num_layers))
        self.caches = [
            KVCache(text.num_layers, CAPACITY, text.num_kv_heads, text.head_dim, dtype, device) for _ in range(2)
        ]
        self.eager = EagerDecoder(
            text, 0, StageWeights(tuple(blocks), **ends), kv=self.caches[0], attention=SdpaAttention()
        )
        packed = tuple(
            PackedBlock.pack(source.layer(layer, keep_fp8=True), dtype, sparse=config.text.layer_is_sparse(layer))
            for layer in range(text.num_layers)
        )
        model = FusedModel(
            text,
            0,
            FusedWeights(packed, **ends),
            self.caches[1],
            linears=PlainLinear(),
            experts=_experts,
            num_deepstack_levels=config.vision.num_deepstack_levels,
        )
        # Alone, since flash attention needs a GPU and 16-bit numbers.
        self.fused = FusedDecoder(model, self.caches[1], InvariantKernels(text))
        self.hidden_size = text.hidden_size
        self.vocab_size = text.vocab_size

    def step(self, segments: list[Segment], injection: VisualInjection | None = None, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        n = sum(segment.count for segment in segments)
        ids = torch.randint(self.vocab_size, (n,), generator=generator, dtype=torch.int32)
        starts = torch.cat([torch.arange(s.start, s.start + s.count, dtype=torch.int32) for s in segments])
        batch = Microbatch(tuple(segments), starts.expand(3, -1), token_ids=ids)
        wanted = [row.place for row in wanted_rows(segments)]
        computed = [each.step(batch, injection, wanted) for each in (self.eager, self.fused)]
        for segment in segments:
            for cache in self.caches:
                cache.advance((segment.session, 1), segment.start, segment.count, segment.num_drafts)
        return computed

    def open(self, *sessions: str) -> None:
        for session in sessions:
            for cache in self.caches:
                cache.reserve((session, 1), 24)


def segment(session: str, start: int, count: int, num_drafts: int = 0) -> Segment:
    return Segment(session=session, attempt=1, start=start, count=count, wants_token=True, num_drafts=num_drafts)


def same(computed, tolerance: float = 1e-4) -> None:
    eager, fused = computed
    torch.testing.assert_close(fused.logits, eager.logits, atol=tolerance, rtol=tolerance)
    assert fused.scan.greedy.tolist() == eager.scan.greedy.tolist()
    assert (fused.scan.is_by_kernels, eager.scan.is_by_kernels) == (True, False)


@pytest.mark.parametrize("moe", [False, True])
def test_chunks_and_steps_agree_with_the_eager_decoder(device: torch.device, moe: bool) -> None:
    pair = Pair(device, moe=moe)
    pair.open("a", "b", "c")
    same(pair.step([segment("a", 0, 3), segment("b", 0, 2)]))
    same(pair.step([segment("c", 0, 2), segment("a", 3, 1)], seed=1))
    same(pair.step([segment("b", 2, 1), segment("c", 2, 1)], seed=2))


@pytest.mark.parametrize("moe", [False, True])
def test_drafts_are_decode_tokens_that_see_each_other(device: torch.device, moe: bool) -> None:
    """On a GPU this is a step of captured graphs; tests/parity/test_cuda_fused.py has those."""
    pair = Pair(device, moe=moe)
    pair.open("a", "b")
    same(pair.step([segment("a", 0, 3), segment("b", 0, 2)]))
    pair.fused = FusedDecoder(pair.fused._model, pair.caches[1], FastKernels())  # no chunk: no flash attention
    same(pair.step([segment("a", 3, 4, num_drafts=3), segment("b", 2, 1)], seed=1))
    same(pair.step([segment("a", 5, 3, num_drafts=2)], seed=2))


def test_visual_rows_go_where_they_belong(device: torch.device) -> None:
    pair = Pair(device, moe=False)
    pair.open("a")
    rows = torch.randn(2, pair.hidden_size, generator=torch.Generator().manual_seed(3)).to(device)
    injection = VisualInjection(
        torch.tensor([1, 3], device=device), rows, {0: rows * 0.5, 1: rows * 0.1, 2: rows * 0.2}
    )
    same(pair.step([segment("a", 0, 4)], injection))
