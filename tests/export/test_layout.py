from __future__ import annotations

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from broker_pipeline.errors import AmbiguousLayoutError, CheckpointError
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
    moe_weights["model.language_model.rotary.scale"] = torch.zeros(4)
    moe_weights["model.language_model.rotary.inv_freq"] = torch.zeros(4)
    moe_weights[LAYER.format(1) + "input_layernorm.weight"] = torch.zeros(63, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError) as refused:
        run_export(write_checkpoint(moe_config, moe_weights))
    message = refused.value.message
    assert "missing (3):\n" in message
    assert "  model.language_model.layers.{0-1}.self_attn.q_proj.weight (2 tensors)\n" in message
    assert "  model.visual.pos_embed.weight\n" in message
    assert "unexpected (1):\n  model.language_model.rotary.scale" in message
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


def as_float16(config, weights):
    config["text_config"]["dtype"] = "float16"
    return {name: tensor.half() for name, tensor in weights.items()}


def test_float16_is_refused_until_it_is_said_what_becomes_of_it(
    run_export, write_checkpoint, dense_config, dense_weights, tmp_path
):
    source = write_checkpoint(dense_config, as_float16(dense_config, dense_weights))
    with pytest.raises(CheckpointError, match=r"float16.*--dtype bfloat16 .*--dtype float32") as refused:
        run_export(source)
    assert refused.value.field == "dtype"
    assert not list(tmp_path.glob("*.artifact*"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_float16_becomes_what_is_asked_for(run_export, write_checkpoint, dense_config, dense_weights, dtype):
    halves = as_float16(dense_config, dense_weights)
    artifact = Artifact.open(run_export(write_checkpoint(dense_config, halves), dtype=dtype).directory)
    assert artifact.config.dtype == dtype
    loaded = artifact.load(dense_weights)
    assert all(torch.equal(loaded[name], half.to(getattr(torch, dtype))) for name, half in halves.items())


def test_buffers_that_were_saved_are_left_out_and_named(
    run_export, write_checkpoint, dense_config, dense_weights, capfd
):
    buffers = {
        "model.language_model.rotary_emb.inv_freq": torch.zeros(16),
        "model.language_model.rotary_emb.original_inv_freq": torch.zeros(16),
        "model.visual.rotary_pos_emb.inv_freq": torch.zeros(6),
        "model.visual.embeddings.position_ids": torch.zeros(1, 4, dtype=torch.int64),
    }
    console = Console(stderr=True, width=300)
    exported = run_export(write_checkpoint(dense_config, dense_weights | buffers), console=console)
    assert exported.manifest == run_export(write_checkpoint(dense_config, dense_weights, "without")).manifest
    told = capfd.readouterr().err
    assert "left out" in told
    assert all(name in told for name in buffers)


def test_a_name_that_ends_like_a_buffer_but_is_a_weight_is_not_left_out(
    run_export, write_checkpoint, dense_config, dense_weights
):
    extra = {"model.language_model.layers.0.self_attn.inv_freq_proj.weight": torch.zeros(4)}
    with pytest.raises(CheckpointError, match="unexpected"):
        run_export(write_checkpoint(dense_config, dense_weights | extra))


def test_adapters_among_the_weights_are_told_from_a_wrong_model(
    run_export, write_checkpoint, dense_config, dense_weights
):
    name = LAYER.format(0) + "self_attn.q_proj.lora_A.weight"
    with pytest.raises(CheckpointError, match=r"LoRA.*merge_and_unload(.|\n)*q_proj\.lora_A"):
        run_export(write_checkpoint(dense_config, dense_weights | {name: torch.zeros(8, 64)}))


def test_another_quantisation_is_refused(run_export, write_checkpoint, dense_config, dense_weights):
    dense_config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    with pytest.raises(CheckpointError, match="quantised by 'awq'"):
        run_export(write_checkpoint(dense_config, dense_weights))
