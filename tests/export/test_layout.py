from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from broker_pipeline.errors import AmbiguousLayoutError, CheckpointError, ModelConfigError
from export.source.checkpoint import LocalCheckpoint
from export.synthetic.random_checkpoint import random_weights
from stages.artifact import Artifact
from stages.qwen3_vl.config import ModelConfig
from tests.kit.models.random_checkpoints import write_random_checkpoint

LAYER = "model.language_model.layers.{}."
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def to_hub(weights):
    return {
        name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor for name, tensor in weights.items()
    }


def square_experts(config, width):
    config["text_config"]["moe_intermediate_size"] = width
    return random_weights(ModelConfig.from_json(config), seed=3, dtype=torch.bfloat16)


@pytest.mark.parametrize(("width", "part"), [(32, GATE_UP), (64, DOWN)])
def test_square_experts_are_refused(run_export, write_checkpoint, moe_config, width, part, tmp_path):
    weights = square_experts(moe_config, width)
    source = write_checkpoint(moe_config, to_hub(weights))
    with pytest.raises(AmbiguousLayoutError, match="--expert-layout hub") as refused:
        run_export(source)
    assert f"model.language_model.layers.{{0-2}}.{part} (3 tensors)" in refused.value.message
    assert not list(tmp_path.glob("*.artifact*"))


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("layout", ["hub", "runtime"])
def test_square_experts_are_exported_when_the_layout_is_stated(run_export, write_checkpoint, moe_config, width, layout):
    weights = square_experts(moe_config, width)
    source = write_checkpoint(moe_config, to_hub(weights) if layout == "hub" else weights)
    exported = run_export(source, expert_layout=layout)
    loaded = Artifact.open(exported.directory).load(weights)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_a_stated_layout_that_the_shapes_contradict_is_refused(run_export, write_checkpoint, moe_config, moe_weights):
    source = write_checkpoint(moe_config, to_hub(moe_weights))
    with pytest.raises(CheckpointError, match="not in the runtime layout that was asked for"):
        run_export(source, expert_layout="runtime")


def test_everything_that_is_wrong_is_in_one_error(run_export, write_checkpoint, moe_config, moe_weights):
    del moe_weights[LAYER.format(0) + "self_attn.q_proj.weight"]
    del moe_weights[LAYER.format(1) + "self_attn.q_proj.weight"]
    del moe_weights["model.visual.pos_embed.weight"]
    moe_weights["model.language_model.rotary.inv_freq"] = torch.zeros(4)
    moe_weights[LAYER.format(1) + "input_layernorm.weight"] = torch.zeros(63, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError) as refused:
        run_export(write_checkpoint(moe_config, moe_weights))
    message = refused.value.message
    assert "missing (3):\n" in message
    assert "  model.language_model.layers.{0-1}.self_attn.q_proj.weight (2 tensors)\n" in message
    assert "  model.visual.pos_embed.weight\n" in message
    assert "unexpected (1):\n  model.language_model.rotary.inv_freq" in message
    assert "wrong shape (1):\n  model.language_model.layers.1.input_layernorm.weight [63] instead of [64]" in message


def test_one_missing_matrix_of_one_expert_is_named(run_export, tmp_path):
    source = write_random_checkpoint(
        tmp_path / "source", moe=True, tied=False, num_layers=3, expert_layout="per_expert"
    )
    weights = load_file(source / "model.safetensors")
    gone = LAYER.format(1) + "mlp.experts.5.up_proj.weight"
    del weights[gone]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        run_export(source)
    assert refused.value.message.endswith(f"missing (1):\n  {gone}")


def test_mixed_dtypes_are_refused_with_the_way_out(run_export, write_checkpoint, dense_config, dense_weights):
    name = "model.language_model.norm.weight"
    weights = dense_weights | {name: dense_weights[name].float()}
    with pytest.raises(CheckpointError, match="--dtype bfloat16 converts them") as refused:
        run_export(write_checkpoint(dense_config, weights))
    assert refused.value.message.count("\n  ") == 1


def test_integer_tensors_are_refused_even_with_a_dtype(run_export, write_checkpoint, dense_config, dense_weights):
    name = "model.language_model.norm.weight"
    weights = dense_weights | {name: dense_weights[name].to(torch.int32)}
    with pytest.raises(CheckpointError, match="of dtype I32, which cannot be exported"):
        run_export(write_checkpoint(dense_config, weights), dtype="bfloat16")


def test_float16_models_are_refused(run_export, write_checkpoint, dense_config, dense_weights):
    dense_config["text_config"]["dtype"] = "float16"
    weights = {name: tensor.half() for name, tensor in dense_weights.items()}
    with pytest.raises(ModelConfigError, match="float16"):
        run_export(write_checkpoint(dense_config, weights))


def test_another_quantisation_is_refused(run_export, write_checkpoint, dense_config, dense_weights):
    dense_config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    with pytest.raises(CheckpointError, match="quantised by 'awq'"):
        run_export(write_checkpoint(dense_config, dense_weights))


class TestLocalCheckpoint:
    def test_no_config(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            LocalCheckpoint(tmp_path)

    def test_no_weights(self, write_checkpoint, dense_config, dense_weights):
        source = write_checkpoint(dense_config, dense_weights)
        (source / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
            LocalCheckpoint(source)

    def test_absent_shards_are_listed(self, write_checkpoint, dense_config, dense_weights):
        source = write_checkpoint(dense_config, dense_weights, num_shards=4)
        (source / "model-00002-of-00004.safetensors").unlink()
        (source / "model-00004-of-00004.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"lacks 2 of 4 .* model-00002-of-00004.*, model-00004-of-00004"):
            LocalCheckpoint(source)

    def test_truncated_shard(self, write_checkpoint, dense_config, dense_weights):
        source = write_checkpoint(dense_config, dense_weights)
        path = source / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            LocalCheckpoint(source)

    def test_index_that_names_a_path(self, write_checkpoint, dense_config, dense_weights):
        source = write_checkpoint(dense_config, dense_weights, num_shards=2)
        index = source / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        name = next(iter(content["weight_map"]))
        content["weight_map"][name] = "../elsewhere.safetensors"
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"no shards: \.\./elsewhere"):
            LocalCheckpoint(source)

    def test_index_and_shards_that_differ(self, write_checkpoint, dense_config, dense_weights):
        source = write_checkpoint(dense_config, dense_weights, num_shards=2)
        index = source / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        del content["weight_map"]["model.language_model.norm.weight"]
        index.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"differ in these tensors:\n  model\.language_model\.norm\.weight$"):
            LocalCheckpoint(source)
