"""The same code on a GPU: against the CPU, within stated rounding. transformers is compared with the CPU elsewhere."""

from __future__ import annotations

import pytest
import torch

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.generate import WholeModel
from stages.compute.loading import load_vision, vision_tensor_names
from stages.compute.options import ComputeOptions
from tests.kit.models.tiny_stages import build_stages
from tests.kit.models.transformers_oracle import (
    BF16,
    FP32,
    SCENES,
    config_of,
    encode,
    prompt_logits,
    relative_error,
    request_of,
    scene,
    stages_of,
    tensors_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def cuda_stages(variant, cuts=(), attention="sdpa"):
    options = ComputeOptions(device="cuda", attention=attention)
    return build_stages(config_of(variant), tensors_of(variant), cuts, kv_capacity_tokens=2048, options=options)


def cuda_encode(variant, shown, attention="sdpa"):
    own = {name: tensors_of(variant)[name] for name in vision_tensor_names(config_of(variant))}
    tower = load_vision(config_of(variant), own, ComputeOptions(device="cuda", attention=attention))
    return tower.encode(shown.rows, shown.grids)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("variant", FP32, ids=str)
def test_rows_and_logits_in_fp32_agree_with_the_cpu(variant, name, attention):
    shown = scene(variant, name)
    rows = encode(variant, shown)
    if rows is not None:
        found_rows = cuda_encode(variant, shown, attention)
        assert relative_error(found_rows.embeds.cpu(), rows.embeds) <= 1e-5
    found = prompt_logits(cuda_stages(variant, (2,), attention), shown, rows).cpu()
    assert relative_error(found, prompt_logits(stages_of(variant), shown, rows)) <= 1e-5


@pytest.mark.parametrize("variant", FP32, ids=str)
def test_tokens_in_fp32_equal_those_of_the_cpu(variant):
    sampling = SamplingSettings(temperature=0.7, top_k=20, top_p=0.8, presence_penalty=0.5, seed=9, logprobs=2)
    requests = [
        request_of(variant, scene(variant, name, seed), session=f"s{seed}", sampling=settings)
        for seed, (name, settings) in enumerate(zip(SCENES, [sampling, SamplingSettings()] * 2, strict=True))
    ]
    expected = WholeModel(stages_of(variant)).generate(requests)
    found = WholeModel(cuda_stages(variant, (1, 4))).generate(requests, chunk_tokens=9)
    assert [[t.token_id for t in ours] for ours in found] == [[t.token_id for t in theirs] for theirs in expected]


@pytest.mark.parametrize("variant", BF16, ids=str)
def test_every_cut_in_bf16_gives_the_bits_of_the_whole(variant):
    shown = scene(variant, "three images")
    rows = cuda_encode(variant, shown)
    whole = prompt_logits(cuda_stages(variant), shown, rows)
    for cuts in [(1,), (2,), (3,), (4,), (5,), (1, 2, 3)]:
        assert torch.equal(prompt_logits(cuda_stages(variant, cuts), shown, rows), whole), cuts


@pytest.mark.parametrize("variant", BF16, ids=str)
def test_logits_in_bf16_stay_near_the_cpus(variant):
    shown = scene(variant, "three images")
    rows = encode(variant, shown)
    found = prompt_logits(cuda_stages(variant, attention="eager"), shown, rows).cpu().float()
    expected = prompt_logits(stages_of(variant), shown, rows).float()
    assert (found - expected).abs().mean() / expected.abs().mean() < 0.1
