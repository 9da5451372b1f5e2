"""Generated checkpoints: reproducible, complete, and the same model in every layout of experts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import model_shapes
from tests.kit.models.random_checkpoints import write_random_checkpoint

FILES = {
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
}


@pytest.mark.parametrize("moe", [False, True])
def test_the_same_arguments_give_the_same_bytes_and_other_seeds_others(tmp_path, moe):
    one, two, other = (
        write_random_checkpoint(tmp_path / name, moe=moe, seed=seed)
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert {path.name for path in one.iterdir()} == FILES
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_those_that_the_configuration_announces(tmp_path, tied, dtype):
    directory = write_random_checkpoint(tmp_path, tied=tied, num_layers=4, dtype=dtype)
    config = ModelConfig.from_json((directory / "config.json").read_bytes())
    tensors = load_file(directory / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == model_shapes(config)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert config.tie_word_embeddings == tied


def test_expert_layouts_hold_the_same_numbers(tmp_path):
    stored = {
        layout: load_file(
            write_random_checkpoint(tmp_path / layout, moe=True, expert_layout=layout) / "model.safetensors"
        )
        for layout in ("hub", "runtime", "per_expert")
    }
    prefix = "model.language_model.layers.2.mlp.experts."
    runtime = stored["runtime"][prefix + "gate_up_proj"]
    assert runtime.shape == (8, 80, 64)
    assert torch.equal(stored["hub"][prefix + "gate_up_proj"].transpose(1, 2), runtime)
    for expert in range(8):
        parts = [stored["per_expert"][f"{prefix}{expert}.{part}_proj.weight"] for part in ("gate", "up")]
        assert torch.equal(torch.cat(parts), runtime[expert])
        down = stored["per_expert"][f"{prefix}{expert}.down_proj.weight"]
        assert torch.equal(down, stored["runtime"][prefix + "down_proj"][expert])
