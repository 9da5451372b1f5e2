"""The decoder with matrices in FP8: near the plain one on dequantised values, and alike in any company."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from broker_pipeline.messages.activation import Segment, SessionOpen
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from export.synthetic.shapes import shape_config
from stages.compute.checked_tensors import CheckedTensors
from stages.compute.eager.decoder import EagerDecoder, StageWeights
from stages.compute.fused.attention import InvariantKernels
from stages.compute.fused.blocks import PackedBlock
from stages.compute.fused.decoder import FusedDecoder
from stages.compute.fused.linear_backends import FastLinear
from stages.compute.fused.loading import expert_block
from stages.compute.fused.model import FusedModel, FusedWeights
from stages.compute.generate import run_stages
from stages.compute.kv.cache import KVCache
from stages.compute.loading import load_stage, stage_tensor_names
from stages.compute.microbatch import Microbatch
from stages.compute.options import ComputeOptions
from stages.compute.stage_compute import StageCompute
from stages.kernels.fp8.block_products import has_library_product
from stages.qwen3_vl.attention import SdpaAttention
from stages.qwen3_vl.tensors import is_fp8_matrix
from stages.random_weights import DrawnTensors
from stages.weights.fp8_matrix import Weight
from tests.kit.models.tiny_stages import tiny_config

NUM_LAYERS = 2


def drawn(shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> Mapping[str, Weight]:
    return DrawnTensors(dict(shapes), device, dtype, in_fp8=[name for name in shapes if is_fp8_matrix(name)])


@pytest.mark.parametrize("kv_in_fp8", [False, True])
@pytest.mark.parametrize("moe", [False, True])
def test_blocks_compute_with_the_values(device: torch.device, moe: bool, kv_in_fp8: bool) -> None:
    """In fp32 there is no rounding between the two: every matrix meets its own scales."""
    config, dtype = tiny_config(moe=moe), torch.float32
    text, shapes = config.text, stage_tensor_names(config, 0, NUM_LAYERS)
    source = CheckedTensors(drawn(shapes, device, dtype), shapes, dtype, device)
    caches = [
        KVCache(NUM_LAYERS, 32, text.num_kv_heads, text.head_dim, dtype, device, in_fp8=kv_in_fp8) for _ in range(2)
    ]
    ends = source.ends(config, BlockRange(start=0, stop=NUM_LAYERS))
    blocks = tuple(source.block(config, layer) for layer in range(NUM_LAYERS))
    eager = EagerDecoder(text, 0, StageWeights(blocks, **ends), kv=caches[0], attention=SdpaAttention())
    packed = tuple(
        PackedBlock.pack(source.layer(layer, keep_fp8=True), dtype, sparse=text.layer_is_sparse(layer))
        for layer in range(NUM_LAYERS)
    )
    weights, linears = FusedWeights(packed, **ends), FastLinear()
    assert weights.is_fp8
    experts = expert_block(linears, deterministic=False, rows_in_fp8=True)
    model = FusedModel(text, 0, weights, caches[1], linears=linears, experts=experts, num_deepstack_levels=3)
    fused = FusedDecoder(model, caches[1], InvariantKernels(text))
    for cache in caches:
        cache.reserve(("a", 1), 8)
    ids = torch.tensor([5, 9, 2, 7, 3], dtype=torch.int32)
    batch = Microbatch((segment("a", 0, 5),), torch.arange(5, dtype=torch.int32).expand(3, -1), token_ids=ids)
    found = [decoder.step(batch, None, []).hidden for decoder in (eager, fused)]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def segment(session: str, start: int, count: int) -> Segment:
    return Segment(session=session, attempt=1, start=start, count=count)


def stage_of(shape: str, **options) -> StageCompute:
    """The first layers of a published shape, on the GPU."""
    config, device = shape_config(shape), torch.device("cuda")
    shapes = stage_tensor_names(config, 0, NUM_LAYERS)
    return load_stage(
        config,
        BlockRange(start=0, stop=NUM_LAYERS),
        drawn(shapes, device, torch.bfloat16),
        kv_capacity_tokens=4096,
        options=ComputeOptions(device="cuda", max_batch_tokens=512, **options),
    )


@torch.inference_mode()
def hidden_of(stage: StageCompute, steps: Sequence[Sequence[tuple[str, int, int]]]) -> list[Tensor]:
    """Open the sessions that the steps name, and return each step's hidden states."""
    for name in {name for step in steps for name, _, _ in step}:
        opening = SessionOpen(
            session=name, attempt=1, num_kv_tokens=400, num_prompt_tokens=400, sampling=SamplingSettings()
        )
        stage.open(opening, ())
    found = []
    for step in steps:
        ids = torch.cat([tokens_of(name)[start : start + count] for name, start, count in step])
        starts = torch.cat([torch.arange(start, start + count, dtype=torch.int32) for _, start, count in step])
        output = run_stages([stage], [segment(*each) for each in step], ids, starts.expand(3, -1))
        assert output.hidden is not None
        found.append(output.hidden.clone())
    for name in {name for step in steps for name, _, _ in step}:
        stage.close(name, 1)
    return found


def tokens_of(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(ord(name))
    return torch.randint(100_000, (400,), generator=generator, dtype=torch.int32)


PREFILL_AND_DECODE = [[("a", 0, 300)], [("b", 0, 40)], [("a", 300, 1), ("b", 40, 1)], [("a", 301, 1)]]


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "tolerances"), [("8B", (0.03, 0.3)), ("30B-A3B", (0.3, 0.6))])
@pytest.mark.parametrize("product", ["library", "kernel", "weight-only"])
def test_published_shapes_are_near_the_plain_path(shape: str, tolerances: tuple[float, float], product: str) -> None:
    """Rows in FP8 are off by 2.6 % at each product, and with random weights a router decides by less than that.

    How exact each product is, tests of kernels say; what has nothing to do with the plain path is off by 1.4.
    """
    if product == "library" and not has_library_product(torch.device("cuda")):
        pytest.skip("the library has this product for Hopper only")
    want = hidden_of(stage_of(shape, attention="sdpa"), PREFILL_AND_DECODE)
    have = hidden_of(stage_of(shape, fp8_product=product, max_step_sessions=4), PREFILL_AND_DECODE)
    tolerance = tolerances[product != "weight-only"]
    for index, (ours, theirs) in enumerate(zip(have, want, strict=True)):
        off = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        assert off < tolerance, f"step {index}: {off}"


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["8B", "30B-A3B"])
def test_deterministic_sessions_have_the_same_bits_in_any_company(shape: str) -> None:
    stage = stage_of(shape, is_deterministic=True, max_step_sessions=4)
    whole, last = hidden_of(stage, [[("a", 0, 300)], [("a", 300, 1)]])
    cut = [[("a", 0, 7)], [("a", 7, 93), ("b", 0, 200)], [("a", 100, 200), ("c", 0, 3)], [("a", 300, 1), ("b", 200, 1)]]
    first, second, third, fourth = hidden_of(stage, cut)
    assert torch.equal(first, whole[:7])
    assert torch.equal(second[:93], whole[7:100])
    assert torch.equal(third[:200], whole[100:300])
    assert torch.equal(fourth[:1], last)
