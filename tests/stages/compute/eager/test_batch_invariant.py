"""`--deterministic`: the bits of a session do not depend on what shares its microbatch, nor on how it is cut."""

from __future__ import annotations

import pytest
import torch

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.generate import WholeModel
from stages.compute.options import ComputeOptions
from tests.kit.models.copying import next_turn
from tests.kit.models.tiny_stages import build_stages
from tests.kit.models.transformers_oracle import BF16, FP32, config_of, encode, request_of, scene, tensors_of

LOGPROBS = SamplingSettings(logprobs=5)


def tokens(variant, requests, chunk_tokens=None, *, is_deterministic=True, cuts=(), device="cpu"):
    options = ComputeOptions(device=device, is_deterministic=is_deterministic)
    stages = build_stages(config_of(variant), tensors_of(variant), cuts, kv_capacity_tokens=2048, options=options)
    return WholeModel(stages).generate(requests, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("variant", [FP32[0], FP32[-1], BF16[0]], ids=str)
def test_logprobs_are_the_same_bits_alone_and_in_company(variant):
    names = ("one image", "three images", "text")
    requests = [
        request_of(variant, scene(variant, name, seed), session=f"s{seed}", sampling=LOGPROBS)
        for seed, name in enumerate(names)
    ]
    together = tokens(variant, requests)
    for request, ours in zip(requests, together, strict=True):
        assert tokens(variant, [request])[0] == ours
        assert tokens(variant, [request], chunk_tokens=7)[0] == ours
    assert tokens(variant, requests, cuts=(2,)) == together


@pytest.mark.parametrize("variant", [FP32[0], FP32[-1], BF16[0]], ids=str)
def test_what_is_kept_of_prompt_and_output_gives_the_next_turn_the_bits_of_a_computed_one(variant):
    options = ComputeOptions(device="cpu", is_deterministic=True)
    [stage] = build_stages(config_of(variant), tensors_of(variant), kv_capacity_tokens=256, options=options)
    assert next_turn(stage, is_kept=True) == next_turn(stage, is_kept=False)


def test_it_is_near_the_other_way_of_computing():
    variant = FP32[0]
    request = request_of(variant, scene(variant, "one image"), session="s", sampling=LOGPROBS)
    alike, other = tokens(variant, [request])[0], tokens(variant, [request], is_deterministic=False)[0]
    assert [t.token_id for t in alike] == [t.token_id for t in other]
    differences = [abs(a.logprob - b.logprob) for a, b in zip(alike, other, strict=True)]
    assert max(differences) < 1e-4
    assert torch.isfinite(torch.tensor(differences)).all()
    assert encode(variant, scene(variant, "one image")) is not None
