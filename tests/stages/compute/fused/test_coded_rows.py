"""Blocks whose kernels write codes against the same blocks where rows are quantised by a launch: every bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.workers import BlockRange
from stages.compute.checked_tensors import CheckedTensors
from stages.compute.fused.attention import InvariantKernels
from stages.compute.fused.blocks import PackedBlock
from stages.compute.fused.decoder import FusedDecoder
from stages.compute.fused.linear_backends import BatchInvariantLinear, FastLinear, LinearBackend
from stages.compute.fused.loading import expert_block
from stages.compute.fused.model import FusedModel, FusedWeights
from stages.compute.fused.proven_products import ProvenProducts
from stages.compute.kv.cache import KVCache
from stages.compute.loading import stage_tensor_names
from stages.compute.microbatch import Microbatch
from stages.kernels.codes.row_codes import RowCodes, Rows, quantise_rows
from stages.kernels.fp8.block_products import kernel_product
from stages.kernels.fp8.linear import MOST_FP8_FEW_ROWS
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import is_fp8_matrix
from stages.random_weights import DrawnTensors
from stages.weights.fp8_matrix import Fp8Matrix, Weight
from tests.kit.models.tiny_stages import tiny_config

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's products of bf16 are wrong
NUM_LAYERS = 2
LARGEST_PROVEN = 32
COUNTS = [20, 5, LARGEST_PROVEN + 3]


class FastOnValues(FastLinear):
    """Nobody writes codes for it."""

    def rows_for(self, like: Tensor, weight: Weight) -> Rows:
        return like.new_empty(len(like), weight.shape[1])


class InvariantOnValues(BatchInvariantLinear):
    """Nobody writes codes for it."""

    def rows_for(self, like: Tensor, weight: Weight) -> Rows:
        return like.new_empty(len(like), weight.shape[1])


def config_of(*, moe: bool) -> ModelConfig:
    """Sizes of which joined projections stay in FP8, while rows end within a block of columns."""
    config = tiny_config(moe=moe)
    text = replace(config.text, hidden_size=192, num_heads=8, num_kv_heads=4, intermediate_size=384)
    return replace(config, text=text)


def weights_of(config: ModelConfig, device: torch.device) -> FusedWeights:
    shapes = stage_tensor_names(config, 0, NUM_LAYERS)
    in_fp8 = [name for name in shapes if is_fp8_matrix(name)]
    source = CheckedTensors(DrawnTensors(dict(shapes), device, torch.float32, in_fp8=in_fp8), shapes, HALF, device)
    packed = tuple(
        PackedBlock.pack(source.layer(layer, keep_fp8=True), HALF, sparse=config.text.layer_is_sparse(layer))
        for layer in range(NUM_LAYERS)
    )
    return FusedWeights(packed, **source.ends(config, BlockRange(start=0, stop=NUM_LAYERS)))


def invariant(weights: FusedWeights, kind: type[BatchInvariantLinear]) -> BatchInvariantLinear:
    def in_fp8(x: Tensor, weight: Fp8Matrix) -> Tensor:
        return kernel_product(quantise_rows(x), weight)

    coded = ProvenProducts[Fp8Matrix](in_fp8, is_alone=True)
    matrices = [weight for weight in weights.matrices() if isinstance(weight, Fp8Matrix)]
    coded.prove(matrices, [8, LARGEST_PROVEN], in_fp8)
    return kind(ProvenProducts[Tensor](torch.nn.functional.linear), coded, kernel_product)


def hidden_of(config: ModelConfig, weights: FusedWeights, linears: LinearBackend) -> list[Tensor]:
    """Hidden states of three microbatches of one session, of `COUNTS` tokens."""
    text, device = config.text, weights.blocks[0].input_norm.device
    kv = KVCache(NUM_LAYERS, sum(COUNTS), text.num_kv_heads, text.head_dim, HALF, device)
    experts = expert_block(linears, deterministic=False, rows_in_fp8=True)
    model = FusedModel(text, 0, weights, kv, linears=linears, experts=experts, num_deepstack_levels=0)
    decoder = FusedDecoder(model, kv, InvariantKernels(text))
    kv.reserve(("a", 1), sum(COUNTS))
    found, start = [], 0
    for count in COUNTS:
        ids = torch.arange(start, start + count, dtype=torch.int32)
        segment = Segment(session="a", attempt=1, start=start, count=count)
        hidden = decoder.step(Microbatch((segment,), ids.expand(3, -1), token_ids=ids), None, []).hidden
        assert hidden is not None
        found.append(hidden)
        kv.advance(("a", 1), start, count)
        start += count
    return found


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("is_invariant", [False, True])
def test_hidden_states_have_the_bits_of_rows_that_are_quantised(device, moe, is_invariant) -> None:
    config = config_of(moe=moe)
    weights = weights_of(config, device)
    assert isinstance(weights.blocks[0].qkv, Fp8Matrix)
    assert moe or isinstance(weights.blocks[0].mlp.gate_up, Fp8Matrix)
    if is_invariant:
        make = partial(invariant, weights)
        backends = [make(BatchInvariantLinear), make(InvariantOnValues)]
    else:
        backends = [FastLinear(kernel_product), FastOnValues(kernel_product)]
    have, want = (hidden_of(config, weights, backend) for backend in backends)
    for ours, theirs in zip(have, want, strict=True):
        assert ours.isfinite().all()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("n", [0, 1, MOST_FP8_FEW_ROWS, MOST_FP8_FEW_ROWS + 1])
def test_many_rows_are_codes_where_weights_are_and_rows_are_multiplied_so(device, n) -> None:
    weights = weights_of(config_of(moe=False), device)
    block, like = weights.blocks[0], torch.empty(n, 7, dtype=HALF, device=device)
    rows = FastLinear(kernel_product).rows_for(like, block.qkv)
    assert isinstance(rows, RowCodes) == (n > MOST_FP8_FEW_ROWS)
    assert (len(rows), rows.dtype) == (n, HALF)
    for backend, weight, given in [
        (FastLinear(None), block.qkv, like),
        (FastLinear(kernel_product), torch.empty(4, 192), like),
        (FastLinear(kernel_product), block.qkv, like.float()),
    ]:
        found = backend.rows_for(given, weight)
        assert isinstance(found, Tensor)
        assert found.shape == (n, 192)


@pytest.mark.parametrize(("n", "padded"), [(1, 8), (8, 8), (9, 32), (32, 32), (33, None)])
def test_codes_of_proven_products_are_padded_to_their_sizes(device, n, padded) -> None:
    weights = weights_of(config_of(moe=False), device)
    like = torch.empty(n, 7, dtype=HALF, device=device)
    found = invariant(weights, BatchInvariantLinear).rows_for(like, weights.blocks[0].qkv)
    assert len(found) == n
    assert (len(found.codes) if isinstance(found, RowCodes) else None) == padded


@pytest.mark.parametrize("n", [0, 1, MOST_FP8_FEW_ROWS, MOST_FP8_FEW_ROWS + 1])
@pytest.mark.parametrize("product", [None, kernel_product])
def test_an_mlp_of_any_number_of_rows(device, n, product) -> None:
    mlp = weights_of(config_of(moe=False), device).blocks[0].mlp
    x = torch.randn(n, 192, generator=torch.Generator().manual_seed(n)).to(device, HALF)
    have, want = (
        backend.linear(backend.gated(x, mlp.gate_up, mlp.down), mlp.down)
        for backend in (FastLinear(product), FastOnValues(product))
    )
    assert have.shape == (n, 192)
    assert torch.equal(have, want)
