"""Staged = whole for every cut, in bits; chunked = one-shot and batched = alone, within stated rounding."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.generate import WholeModel
from tests.kit.models.transformers_oracle import (
    BF16,
    FP32,
    encode,
    prompt_logits,
    relative_error,
    request_of,
    scene,
    stages_of,
)

NUM_LAYERS = 6
SINGLE_CUTS = [(cut,) for cut in range(1, NUM_LAYERS)]
TWO_CUTS = list(combinations(range(1, NUM_LAYERS), 2))
ALL_CUTS = [*SINGLE_CUTS, *TWO_CUTS, (1, 2, 3, 4, 5)]
KINDS = (FP32[0], FP32[3], BF16[0], BF16[3])


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("name", ["three images", "image and odd video"])
@pytest.mark.parametrize("variant", KINDS, ids=str)
def test_every_cut_gives_the_bits_of_the_whole(variant, name, kv_dtype):
    shown = scene(variant, name)
    rows = encode(variant, shown)
    whole = prompt_logits(stages_of(variant, kv_dtype=kv_dtype), shown, rows)
    for cuts in ALL_CUTS:
        assert torch.equal(prompt_logits(stages_of(variant, cuts, kv_dtype=kv_dtype), shown, rows), whole), cuts


@pytest.mark.parametrize("variant", KINDS, ids=str)
def test_keys_and_values_in_fp8_are_near_the_others(variant):
    """Random routers decide by less than that, so that experts are further off; what is wrong is off by more than 1."""
    shown = scene(variant, "three images")
    rows = encode(variant, shown)
    exact, held = (prompt_logits(stages_of(variant, kv_dtype=each), shown, rows) for each in ("auto", "fp8"))
    off = float((held.float() - exact.float()).norm() / exact.float().norm())
    assert 0 < off < (0.3 if variant.moe else 0.1)


@pytest.mark.parametrize("variant", KINDS, ids=str)
def test_every_cut_generates_the_tokens_of_the_whole(variant):
    shown = scene(variant, "one image")
    request = request_of(variant, shown, sampling=SamplingSettings(logprobs=3))
    whole = WholeModel(stages_of(variant)).generate([request])
    for cuts in ALL_CUTS:
        assert WholeModel(stages_of(variant, cuts)).generate([request]) == whole, cuts


@pytest.mark.parametrize("cuts", [(), (1, 2), (2, 5)], ids=str)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", [FP32[0], FP32[3]], ids=str)
def test_chunked_prefill_agrees_with_one_shot(variant, attention, chunk_tokens, cuts):
    shown = scene(variant, "image and odd video")
    rows = encode(variant, shown)
    stages = stages_of(variant, cuts, attention)
    whole = prompt_logits(stages, shown, rows)
    assert relative_error(prompt_logits(stages, shown, rows, chunk_tokens), whole) <= 1e-5


@pytest.mark.parametrize("variant", [FP32[0], FP32[3]], ids=str)
def test_equal_chunks_give_equal_bits_for_every_cut(variant):
    shown = scene(variant, "three images")
    rows = encode(variant, shown)
    whole = prompt_logits(stages_of(variant), shown, rows, 7)
    for cuts in SINGLE_CUTS:
        assert torch.equal(prompt_logits(stages_of(variant, cuts), shown, rows, 7), whole), cuts


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("variant", [FP32[0], FP32[3]], ids=str)
def test_a_session_in_a_batch_agrees_with_the_same_session_alone(variant, attention):
    names = ("text", "one image", "three images", "image and odd video", "one image")
    requests = [
        request_of(
            variant,
            scene(variant, name, seed),
            session=f"s{seed}",
            num_tokens=6 + seed,
            sampling=SamplingSettings(logprobs=5),
        )
        for seed, name in enumerate(names)
    ]
    together = WholeModel(stages_of(variant, (2,), attention)).generate(requests)
    alone = [WholeModel(stages_of(variant, (2,), attention)).generate([request])[0] for request in requests]
    for batched, single in zip(together, alone, strict=True):
        assert [token.token_id for token in batched] == [token.token_id for token in single]
        for ours, theirs in zip(batched, single, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
