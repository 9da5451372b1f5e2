"""Building stages and towers from named tensors: what is wrong is listed."""

from __future__ import annotations

import pytest
import torch

from broker_pipeline.errors import ArtifactError, ConfigurationError
from broker_pipeline.messages.workers import BlockRange
from stages.compute.loading import (
    load_stage,
    load_vision,
    stage_tensor_names,
    vision_tensor_names,
)
from stages.compute.options import ComputeOptions
from tests.kit.models.transformers_oracle import BF16, FP32, config_of, tensors_of

CONFIG = config_of(FP32[0])
BLOCKS = BlockRange(start=2, stop=4)


def own_tensors(start: int = 2, stop: int = 4) -> dict[str, torch.Tensor]:
    return {name: tensors_of(FP32[0])[name] for name in stage_tensor_names(CONFIG, start, stop)}


def test_names_of_all_stages_and_the_tower_make_up_the_checkpoint():
    for variant in FP32:
        config = config_of(variant)
        names = set(vision_tensor_names(config))
        for start, stop in ((0, 1), (1, 4), (4, 6)):
            names |= set(stage_tensor_names(config, start, stop))
        assert names == set(tensors_of(variant))


def test_a_tied_head_needs_the_embedding_and_a_middle_stage_neither():
    first, middle, last = (set(stage_tensor_names(CONFIG, *r)) for r in ((0, 2), (2, 4), (4, 6)))
    embedding = "model.language_model.embed_tokens.weight"
    assert embedding in first
    assert embedding in last
    assert "lm_head.weight" not in last
    assert all(".layers." in name for name in middle)
    assert "lm_head.weight" in stage_tensor_names(config_of(FP32[1]), 4, 6)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 2), (0, 7), (6, 7)])
def test_impossible_ranges_are_refused(start, stop):
    with pytest.raises(ConfigurationError, match="no range"):
        stage_tensor_names(CONFIG, start, stop)


def load(tensors: dict[str, torch.Tensor], **options):
    return load_stage(CONFIG, BLOCKS, tensors, kv_capacity_tokens=8, options=ComputeOptions(**options))


def test_missing_tensors_are_listed():
    tensors = own_tensors()
    del tensors["model.language_model.layers.3.mlp.up_proj.weight"]
    with pytest.raises(ArtifactError, match=r"1 tensors are missing: model\.language_model\.layers\.3\.mlp\.up_proj"):
        load(tensors)


def test_unexpected_tensors_are_listed():
    with pytest.raises(ArtifactError, match="unexpected"):
        load(own_tensors(2, 5))


def test_every_wrong_shape_and_dtype_is_listed():
    tensors = own_tensors()
    norm, up = (f"model.language_model.layers.2.{n}.weight" for n in ("input_layernorm", "mlp.up_proj"))
    tensors[norm] = tensors[norm][:-1]
    tensors[up] = tensors[up].half()
    with pytest.raises(ArtifactError, match="of a wrong shape or dtype") as caught:
        load(tensors)
    assert norm in str(caught.value)
    assert f"{up} [160, 64] torch.float16" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "int8", "bf16"])
def test_dtypes_that_overflow_or_are_unknown_are_refused(dtype):
    with pytest.raises(ConfigurationError, match="bfloat16 or float32"):
        load(own_tensors(), dtype=dtype)


@pytest.mark.parametrize(("given", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_are_converted_to_the_asked_dtype(given, expected):
    stage = load(own_tensors(), dtype=given)
    assert stage.dtype == expected
    assert stage.kv.keys(0).dtype == expected


def test_the_checkpoints_own_dtype_is_the_default():
    config = config_of(BF16[0])
    names = vision_tensor_names(config)
    tower = load_vision(config, {name: tensors_of(BF16[0])[name] for name in names})
    assert tower.dtype == torch.bfloat16


def test_the_vision_tower_wants_exactly_its_tensors():
    with pytest.raises(ArtifactError, match="unexpected"):
        load_vision(CONFIG, tensors_of(FP32[0]))


def test_a_device_that_is_not_there_is_refused():
    options = ComputeOptions(device="cuda:99")
    with pytest.raises(ConfigurationError, match="cuda:99"):
        load_stage(CONFIG, BLOCKS, own_tensors(), kv_capacity_tokens=64, options=options)
