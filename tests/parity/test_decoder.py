"""The decoder against transformers: logits of every prompt token, and greedy tokens."""

from __future__ import annotations

import pytest
import torch

from stages.compute.generate import WholeModel
from tests.kit.models.transformers_oracle import (
    BF16,
    FP32,
    SCENES,
    encode,
    prompt_logits,
    reference_logits,
    reference_tokens,
    relative_error,
    request_of,
    scene,
    stages_of,
)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", FP32, ids=str)
def test_logits_in_fp32_agree_within_rounding(variant, attention, name):
    shown = scene(variant, name)
    found = prompt_logits(stages_of(variant, attention=attention), shown, encode(variant, shown, attention))
    assert relative_error(found, reference_logits(variant, shown, attention)) <= 1e-5


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("variant", BF16, ids=str)
def test_logits_in_bf16_are_bit_identical_with_eager_attention_and_experts(variant, name):
    shown = scene(variant, name)
    found = prompt_logits(stages_of(variant), shown, encode(variant, shown))
    assert torch.equal(found, reference_logits(variant, shown))


@pytest.mark.parametrize("variant", BF16, ids=str)
def test_sdpa_in_bf16_stays_near_eager(variant):
    """No bits are promised here; the bound is what bf16's 8 bits leave after six layers, with room."""
    shown = scene(variant, "three images")
    found = prompt_logits(stages_of(variant, attention="sdpa"), shown, encode(variant, shown, "sdpa"))
    expected = reference_logits(variant, shown)
    typical = (found.float() - expected.float()).abs().mean() / expected.float().abs().mean()
    assert typical < 0.1


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("variant", FP32 + BF16, ids=str)
def test_greedy_tokens_equal_generate(variant, name):
    shown = scene(variant, name)
    expected = reference_tokens(variant, shown, 16)
    [sampled] = WholeModel(stages_of(variant)).generate([request_of(variant, shown)])
    assert [token.token_id for token in sampled] == expected


def test_greedy_tokens_depend_on_the_picture():
    """Guards the tests above: a model that ignored its pictures would pass them with a constant answer."""
    variant = FP32[1]
    answers = {tuple(reference_tokens(variant, scene(variant, "one image", seed), 8)) for seed in range(4)}
    assert len(answers) == 4
