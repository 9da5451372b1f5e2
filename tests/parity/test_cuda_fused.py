"""The fused decoder on a GPU: near the plain one in bf16, alike however it is cut, captured or batched."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.drafts.limits import DraftLimits
from stages.compute.generate import WholeModel
from stages.compute.kv.capacity import KVRoom
from stages.compute.loading import load_stage, stage_tensor_names
from stages.compute.microbatch import Microbatch
from stages.compute.options import ComputeOptions
from tests.kit.models.copying import decoded_second, next_turn
from tests.kit.models.growing import decoded
from tests.kit.models.scheduled_model import FEW, ScheduledModel, repetitive
from tests.kit.models.tiny_stages import build_stages
from tests.kit.models.transformers_oracle import (
    BF16,
    SCENES,
    config_of,
    encode,
    prompt_logits,
    request_of,
    scene,
    stages_of,
    tensors_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LOGPROBS = SamplingSettings(logprobs=5)


def fused(variant, cuts=(), **options):
    options = ComputeOptions(**{"device": "cuda", "max_batch_tokens": 512, "is_deterministic": False} | options)
    return build_stages(config_of(variant), tensors_of(variant), cuts, kv_capacity_tokens=2048, options=options)


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_logits_are_as_near_to_fp32_as_the_plain_path_in_bf16(variant, name, kv_dtype):
    shown = scene(variant, name)
    rows = encode(variant, shown)
    exact = build_stages(config_of(variant), tensors_of(variant), options=ComputeOptions(dtype="float32"))
    truth = prompt_logits(exact, shown, rows)
    plain = distance(prompt_logits(stages_of(variant, kv_dtype=kv_dtype), shown, rows), truth)
    found = distance(prompt_logits(fused(variant, max_step_sessions=0, kv_dtype=kv_dtype), shown, rows), truth)
    assert found <= 1.5 * plain + 0.005


def distance(ours, truth) -> float:
    """Of all logits together, relative to the truth."""
    return float((ours.cpu().float() - truth).norm() / truth.norm())


def test_it_is_what_a_gpu_gets_by_itself():
    assert type(fused(BF16[0], max_step_sessions=0)[0].decoder).__name__ == "FusedDecoder"


@pytest.mark.parametrize("variant", BF16, ids=str)
def test_captured_steps_are_the_launched_ones(variant):
    requests = [request_of(variant, scene(variant, name), session=name, sampling=LOGPROBS) for name in SCENES]
    captured = WholeModel(fused(variant, max_step_sessions=8)).generate(requests)
    launched = WholeModel(fused(variant, max_step_sessions=0)).generate(requests)
    for ours, theirs in zip(captured, launched, strict=True):
        assert ours[0] == theirs[0]  # both from the same prefill
        assert ours[1].logprob == pytest.approx(theirs[1].logprob, abs=0.1) or ours[0].token_id != theirs[0].token_id


@pytest.mark.parametrize("num_sessions", [0, 8])
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_chunks_go_on_where_the_last_ended(variant, num_sessions):
    requests = [request_of(variant, scene(variant, name), session=name, sampling=LOGPROBS) for name in SCENES]
    stages = fused(variant, max_step_sessions=num_sessions)
    whole, chunked = (WholeModel(stages).generate(requests, chunk_tokens=size) for size in (None, 7))
    for ours, theirs in zip(chunked, whole, strict=True):
        likely = {top.token_id: top.logprob for top in theirs[0].top}
        assert ours[0].logprob == pytest.approx(likely.get(ours[0].token_id), abs=0.25)


@pytest.mark.parametrize("cuts", [(1,), (2, 4), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_every_cut_gives_the_tokens_of_the_whole(variant, cuts):
    requests = [request_of(variant, scene(variant, name), session=name, sampling=LOGPROBS) for name in SCENES]
    whole = WholeModel(fused(variant, max_step_sessions=4)).generate(requests)
    assert WholeModel(fused(variant, cuts, max_step_sessions=4)).generate(requests) == whole


@pytest.mark.parametrize("variant", BF16, ids=str)
def test_deterministic_sessions_have_the_same_bits_in_any_company(variant):
    requests = [request_of(variant, scene(variant, name), session=name, sampling=LOGPROBS) for name in SCENES]
    stages = fused(variant, is_deterministic=True, max_step_sessions=4)
    together = WholeModel(stages).generate(requests)
    for request, ours in zip(requests, together, strict=True):
        assert WholeModel(stages).generate([request])[0] == ours
        assert WholeModel(stages).generate([request], chunk_tokens=7)[0] == ours


@pytest.mark.parametrize("num_sessions", [0, 4])
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_kv_that_grows_and_moves_gives_the_same_bits(variant, num_sessions):
    [stage] = fused(variant, is_deterministic=True, max_step_sessions=num_sessions)
    whole = decoded(stage, 40)
    for step in (1, 7):
        assert decoded(stage, 40, step) == whole


@pytest.mark.parametrize("num_sessions", [0, 4])
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_a_copied_prefix_gives_the_bits_of_a_computed_one(variant, num_sessions):
    [stage] = fused(variant, max_step_sessions=num_sessions)
    computed = decoded_second(stage, is_copied=False)
    assert decoded_second(stage, is_copied=True) == computed
    assert decoded_second(stage, is_copied=True, is_kept=True) == computed


@pytest.mark.parametrize("num_sessions", [0, 4])
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_what_is_kept_of_prompt_and_output_gives_the_next_turn_the_bits_of_a_computed_one(variant, num_sessions):
    [stage] = fused(variant, is_deterministic=True, max_step_sessions=num_sessions)
    assert next_turn(stage, is_kept=True) == next_turn(stage, is_kept=False)


def test_kv_takes_what_is_free_and_no_more():
    variant = BF16[0]

    options = ComputeOptions(device="cuda", max_batch_tokens=512, max_step_sessions=8)
    room = KVRoom(share=0.001)
    [stage] = build_stages(config_of(variant), tensors_of(variant), kv_capacity_tokens=room, options=options)
    assert stage.kv.capacity_tokens > 256
    assert stage.kv.num_sessions == 0


def middle_stage(variant):
    """Layers without DeepStack, which a launched pass without pictures leaves out, and a graph adds nothing with."""
    config, tensors = config_of(variant), tensors_of(variant)
    own = {name: tensors[name] for name in stage_tensor_names(config, 3, 5)}
    options = ComputeOptions(device="cuda", max_batch_tokens=4096, max_step_sessions=8)
    return load_stage(config, BlockRange(start=3, stop=5), own, kv_capacity_tokens=8192, options=options)


def microbatch(stage, *segments):
    """One of a new session for each (start, count); what a session holds already is whatever its KV has."""
    for number, (start, count) in enumerate(segments):
        stage.kv.reserve((f"s{number}", 1), start + count)
        stage.kv.advance((f"s{number}", 1), 0, start)
    made = [
        Segment(session=f"s{number}", attempt=1, start=start, count=count)
        for number, (start, count) in enumerate(segments)
    ]
    positions = torch.cat([torch.arange(start, start + count, dtype=torch.int32) for start, count in segments])
    hidden = torch.randn(len(positions), stage.config.text.hidden_size).to(torch.bfloat16)
    return Microbatch(tuple(made), positions.expand(3, -1), hidden=hidden)


@torch.inference_mode()
@pytest.mark.parametrize("variant", BF16[:3:2], ids=str)
def test_large_passes_are_graphs_with_the_bits_of_their_kernels(variant):
    stage = middle_stage(variant)
    batch = microbatch(stage, (0, 1500), (300, 700), (0, 743), (5, 129))  # 3,072 tokens: a graph's size
    assert stage.decoder._passes.size_for(stage.decoder._layout(batch), 0) == 3072
    launched = stage.decoder.launch(batch, None, ()).hidden
    assert torch.equal(stage.decoder.step(batch, None, ()).hidden, launched)


@torch.inference_mode()
@pytest.mark.parametrize("variant", BF16[:3:2], ids=str)
def test_large_mixed_passes_agree_with_their_kernels(variant):
    stage = middle_stage(variant)
    batch = microbatch(stage, (0, 2001), (17, 640), (0, 2), (40, 1), (0, 1), (99, 1))
    assert stage.decoder._passes.size_for(stage.decoder._layout(batch), 0) == 2688
    launched = stage.decoder.launch(batch, None, ()).hidden
    replayed = stage.decoder.step(batch, None, ()).hidden
    assert distance(replayed, launched.cpu().float()) < 0.02
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    stage.decoder.step(batch, None, ())
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 2 * launched.nbytes  # what is returned, and no more


@torch.inference_mode()
def test_a_pass_of_more_chunks_than_a_graph_takes_is_launched():
    stage = middle_stage(BF16[0])
    batch = microbatch(stage, *[(0, 2)] * 100)
    assert stage.decoder._passes.size_for(stage.decoder._layout(batch), 0) is None
    assert stage.decoder.step(batch, None, ()).hidden.shape == (200, stage.config.text.hidden_size)


@torch.inference_mode()
@pytest.mark.parametrize("variant", BF16[:3:2], ids=str)
def test_a_step_with_drafts_is_a_graph_near_its_kernels(variant):
    stage = middle_stage(variant)
    batch = microbatch(stage, (20, 6), (9, 1))
    drafted = tuple(replace(segment, num_drafts=segment.count - 1) for segment in batch.segments)
    batch = Microbatch(drafted, batch.positions, hidden=batch.hidden)
    assert stage.decoder._steps.size_for(batch) == 8
    launched = stage.decoder.launch(batch, None, ()).hidden
    assert distance(stage.decoder.step(batch, None, ()).hidden, launched.cpu().float()) < 0.02


@pytest.mark.parametrize("cuts", [(), (2, 4)], ids=["one stage", "three stages"])
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_deterministic_drafts_give_the_bits_of_single_steps(variant, cuts):
    request = repetitive("a", SamplingSettings(temperature=0.7, seed=5, logit_bias=FEW, logprobs=2))
    stages = fused(variant, cuts, is_deterministic=True, max_step_sessions=8)
    expected = WholeModel(stages).generate([request])
    model = ScheduledModel(stages, DraftLimits(5))
    assert model.generate([request]) == expected
    assert model.num_accepted > 0
