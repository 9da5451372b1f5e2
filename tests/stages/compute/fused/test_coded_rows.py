"""Blocks whose kernels write codes against the same blocks where rows are quantised by a launch: every bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.workers import BlockRange
from export.synthetic.shapes import shape_config
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
from stages.kernels.fp8.block_products import BlockProduct, has_library_product, kernel_product, library_product
from stages.kernels.fp8.linear import MOST_FP8_FEW_ROWS
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import is_fp8_matrix
from stages.random_weights import DrawnTensors
from stages.weights.fp8_matrix import Fp8Matrix, Weight
from tests.kit.models.tiny_stages import tiny_config

HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's products of bf16 are wrong
FEW_TOKENS = [5]
MANY_TOKENS = [MOST_FP8_FEW_ROWS + 1]
SIZES = [4, 8]


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
    text = replace(config.text, hidden_size=192, num_heads=4, num_kv_heads=4, intermediate_size=384)
    return replace(config, text=text)


@lru_cache(maxsize=2)
def weights_of(config: ModelConfig, device: torch.device, num_layers: int) -> FusedWeights:
    shapes, dtype = stage_tensor_names(config, 0, num_layers), torch.float32
    drawn = DrawnTensors(dict(shapes), device, dtype, in_fp8=[name for name in shapes if is_fp8_matrix(name)])
    source = CheckedTensors(drawn, shapes, HALF, device)
    packed = tuple(
        PackedBlock.pack(source.layer(layer, keep_fp8=True), HALF, sparse=config.text.layer_is_sparse(layer))
        for layer in range(num_layers)
    )
    return FusedWeights(packed, **source.ends(config, BlockRange(start=0, stop=num_layers)))


@lru_cache(maxsize=1)
def proven(weights: FusedWeights, product: BlockProduct) -> ProvenProducts[Fp8Matrix]:
    def in_fp8(x: Tensor, weight: Fp8Matrix) -> Tensor:
        return product(quantise_rows(x), weight)

    found = ProvenProducts[Fp8Matrix](in_fp8, is_alone=True)
    found.prove([weight for weight in weights.matrices() if isinstance(weight, Fp8Matrix)], SIZES, in_fp8)
    return found


def backends(weights: FusedWeights, product: BlockProduct, *, is_invariant: bool) -> tuple[LinearBackend, ...]:
    """Return one for which codes are written, and the same one for which none are."""
    if not is_invariant:
        return FastLinear(product), FastOnValues(product)
    kinds, coded = (BatchInvariantLinear, InvariantOnValues), proven(weights, product)
    return tuple(kind(ProvenProducts[Tensor](F.linear), coded, product) for kind in kinds)


def hidden_of(
    config: ModelConfig, weights: FusedWeights, linears: LinearBackend, counts: Sequence[int]
) -> list[Tensor]:
    """Hidden states of microbatches of one session, of so many tokens each."""
    text, device, num_layers = config.text, weights.blocks[0].input_norm.device, len(weights.blocks)
    kv = KVCache(num_layers, sum(counts), text.num_kv_heads, text.head_dim, HALF, device)
    experts = expert_block(linears, deterministic=False, rows_in_fp8=True)
    model = FusedModel(text, 0, weights, kv, linears=linears, experts=experts, num_deepstack_levels=0)
    decoder = FusedDecoder(model, kv, InvariantKernels(text))
    kv.reserve(("a", 1), sum(counts))
    found, start = [], 0
    for count in counts:
        ids = torch.arange(start, start + count, dtype=torch.int32)
        segment = Segment(session="a", attempt=1, start=start, count=count)
        found.append(decoder.forward(Microbatch((segment,), ids.expand(3, -1), token_ids=ids), None))
        kv.advance(("a", 1), start, count)
        start += count
    return found


def same_bits(
    config: ModelConfig, weights: FusedWeights, counts: Sequence[int], product: BlockProduct, *, is_invariant: bool
) -> None:
    pair = backends(weights, product, is_invariant=is_invariant)
    have, want = (hidden_of(config, weights, backend, counts) for backend in pair)
    for ours, theirs in zip(have, want, strict=True):
        assert ours.isfinite().all()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("moe", "is_invariant", "num_layers", "counts"),
    [(False, True, 2, FEW_TOKENS), (True, True, 2, FEW_TOKENS), (False, False, 1, MANY_TOKENS)],
)
def test_hidden_states_have_the_bits_of_rows_that_are_quantised(device, moe, is_invariant, num_layers, counts) -> None:
    config = config_of(moe=moe)
    weights = weights_of(config, device, num_layers)
    assert isinstance(weights.blocks[0].qkv, Fp8Matrix)
    assert isinstance(weights.blocks[0].mlp.first, Fp8Matrix) != moe
    same_bits(config, weights, counts, kernel_product, is_invariant=is_invariant)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["8B", "30B-A3B"])
@pytest.mark.parametrize("is_invariant", [False, True])
@pytest.mark.parametrize("product", [kernel_product, library_product])
def test_published_shapes_have_the_bits_of_rows_that_are_quantised(shape, is_invariant, product) -> None:
    config, device = shape_config(shape), torch.device("cuda")
    if product is library_product and not has_library_product(device):
        pytest.skip("the library has this product for Hopper only")
    with torch.inference_mode():
        same_bits(config, weights_of(config, device, 2), [1323, 17, 5, 1], product, is_invariant=is_invariant)


@pytest.mark.parametrize("n", [0, 1, MOST_FP8_FEW_ROWS, MOST_FP8_FEW_ROWS + 1])
def test_many_rows_are_codes_where_weights_are_and_rows_are_multiplied_so(device, n) -> None:
    qkv = weights_of(config_of(moe=False), device, 1).blocks[0].qkv
    like = torch.empty(n, 7, dtype=HALF, device=device)
    rows = FastLinear(kernel_product).rows_for(like, qkv)
    assert isinstance(rows, RowCodes) == (n > MOST_FP8_FEW_ROWS)
    assert (len(rows), rows.dtype) == (n, HALF)
    for product, weight, given in [
        (None, qkv, like),
        (kernel_product, torch.empty(4, 192), like),
        (kernel_product, qkv, like.float()),
    ]:
        found = FastLinear(product).rows_for(given, weight)
        assert isinstance(found, Tensor)
        assert found.shape == (n, 192)


@pytest.mark.parametrize(("n", "padded"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, None)])
def test_codes_of_proven_products_are_padded_to_their_sizes(device, n, padded) -> None:
    weights = weights_of(config_of(moe=False), device, 1)
    linears, _ = backends(weights, kernel_product, is_invariant=True)
    found = linears.rows_for(torch.empty(n, 7, dtype=HALF, device=device), weights.blocks[0].qkv)
    assert len(found) == n
    assert (len(found.codes) if isinstance(found, RowCodes) else None) == padded


@pytest.mark.parametrize("n", [0, 1, MOST_FP8_FEW_ROWS, MOST_FP8_FEW_ROWS + 1])
@pytest.mark.parametrize("product", [None, kernel_product])
def test_an_mlp_of_any_number_of_rows(device, n, product) -> None:
    mlp = weights_of(config_of(moe=False), device, 1).blocks[0].mlp
    x = torch.randn(n, 192, generator=torch.Generator().manual_seed(n)).to(device, HALF)
    have, want = (
        backend.linear(backend.gated(x, mlp.gate_up, mlp.down), mlp.down)
        for backend in (FastLinear(product), FastOnValues(product))
    )
    assert have.shape == (n, 192)
    assert torch.equal(have, want)
