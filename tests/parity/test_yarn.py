"""YaRN against transformers: frequencies and factor to the bit, logits of prompts within rounding."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRotaryEmbedding

from stages.compute.generate import WholeModel
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.rope import TextRope, text_rotation
from tests.kit.models.tiny_models import merged, tiny_checkpoint
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

README = {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16}
SETTINGS = [
    README,
    README | {"original_max_position_embeddings": 262144, "factor": 2},
    README | {"factor": 1.0},
    README | {"attention_factor": 1.7},
    README | {"truncate": False, "beta_fast": 8.0, "beta_slow": 0.5},
    README | {"mscale": 1.3, "mscale_all_dim": 0.6},
    README | {"mscale": 1.3},
    README | {"beta_fast": 2, "beta_slow": 2, "truncate": False},
]


def changes(yarn: dict) -> str:
    """Return the change of `config.json`; a model of tiny positions is stretched at once."""
    return json.dumps({"text_config": {"rope_scaling": yarn}})


def yarn_variant(variant, yarn: dict = README):
    return replace(variant, changes=changes(yarn))


@pytest.mark.parametrize("yarn", SETTINGS, ids=str)
@pytest.mark.parametrize("head_dim", [32, 128])
def test_frequencies_factor_and_tables_are_those_of_transformers_to_the_bit(tmp_path, yarn, head_dim):
    config = json.loads((tiny_checkpoint() / "config.json").read_bytes())
    section = [6, 5, 5] if head_dim == 32 else [24, 20, 20]
    config = merged(config, {"text_config": {"head_dim": head_dim, "rope_scaling": yarn | {"mrope_section": section}}})
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = Qwen3VLTextRotaryEmbedding(AutoConfig.from_pretrained(tmp_path).text_config)
    ours = TextRope.of(ModelConfig.from_json(config).text, torch.device("cpu"))
    assert torch.equal(ours.frequencies, theirs.inv_freq)
    assert ours.scale == pytest.approx(theirs.attention_scaling, rel=1e-12)
    positions = torch.randint(0, 900_000, (3, 50), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    for dtype in (torch.float32, torch.bfloat16):
        expected = theirs(torch.empty(0, dtype=dtype), positions[:, None].long())
        for found, wanted in zip(text_rotation(positions, ours, dtype), expected, strict=True):
            assert torch.equal(found[:, 0], wanted[0])


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("variant", FP32, ids=str)
def test_logits_in_fp32_agree_within_rounding(variant, name):
    stretched = yarn_variant(variant)
    shown = scene(stretched, name)
    found = prompt_logits(stages_of(stretched), shown, encode(stretched, shown))
    assert relative_error(found, reference_logits(stretched, shown)) <= 1e-5
    plain = prompt_logits(stages_of(variant), shown, encode(variant, shown))
    assert relative_error(plain, reference_logits(stretched, shown)) > 1e-3, "YaRN must be seen to matter"


@pytest.mark.parametrize("variant", BF16[:1] + BF16[3:], ids=str)
def test_logits_in_bf16_are_bit_identical(variant):
    stretched = yarn_variant(variant)
    shown = scene(stretched, "image and odd video")
    found = prompt_logits(stages_of(stretched, cuts=(2, 4)), shown, encode(stretched, shown))
    assert torch.equal(found, reference_logits(stretched, shown))


@pytest.mark.parametrize("variant", FP32, ids=str)
def test_greedy_tokens_equal_generate(variant):
    stretched = yarn_variant(variant)
    shown = scene(stretched, "three images")
    [sampled] = WholeModel(stages_of(stretched)).generate([request_of(stretched, shown)])
    assert [token.token_id for token in sampled] == reference_tokens(stretched, shown, 16)
