"""FP8 checkpoints, against values worked out element by element here."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from broker_pipeline.errors import CheckpointError
from export.recipe import BlockScale, Plain
from export.source.shard import SourceTensor
from export.synthetic.random_checkpoint import random_hf_config, random_weights
from stages.artifact import Artifact
from stages.qwen3_vl.config import ModelConfig
from stages.weights.fp8_matrix import dequantise

BLOCK = 16  # of the tiny model's matrices (64 x 40 and the like), so that last blocks are cut


def quantise(matrix: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales of one matrix, by blocks."""
    rows, columns = matrix.shape
    scales = torch.empty(math.ceil(rows / BLOCK), math.ceil(columns / BLOCK), dtype=dtype)
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = matrix[block].abs().max().float() / 448
            codes[block] = (matrix[block].float() / scales[i, j].float()).to(torch.float8_e4m3fn)
    return codes, scales


def by_element(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The reference: value = code x scale of its block, in Python, rounded once to bfloat16."""
    values = [
        [float(codes[r, c]) * float(scales[r // BLOCK, c // BLOCK]) for c in range(codes.shape[1])]
        for r in range(codes.shape[0])
    ]
    return torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)


def fp8_checkpoint(experts: str, scale_dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return configuration, stored tensors and the tensors expected in the artifact."""
    config = random_hf_config(moe=True, tied=False, num_layers=3, dtype=torch.bfloat16)
    weights = random_weights(ModelConfig.from_json(config), seed=5, dtype=torch.bfloat16)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "fmt": "e4m3"}
    stored, expected = {}, dict(weights)
    for name, tensor in weights.items():
        if name.endswith("_proj.weight"):
            codes, scales = quantise(tensor, scale_dtype)
            stored |= {name: codes, f"{name}_scale_inv": scales}
            expected[name] = by_element(codes, scales)
        elif ".experts." in name:
            parts, expected[name] = EXPERTS[experts](name, tensor, scale_dtype)
            stored |= parts
        else:
            stored[name] = tensor
    return config, stored, expected


def fused(name, tensor, scale_dtype, *, turned):
    matrices = [quantise(expert.t() if turned else expert, scale_dtype) for expert in tensor]
    values = [by_element(*matrix) for matrix in matrices]
    stored = {
        name: torch.stack([codes for codes, _ in matrices]),
        f"{name}_scale_inv": torch.stack([scales for _, scales in matrices]),
    }
    return stored, torch.stack([value.t().contiguous() if turned else value for value in values])


def separate(name, tensor, scale_dtype):
    prefix, part = name.rsplit(".", 1)
    kinds = ("gate_proj", "up_proj") if part == "gate_up_proj" else ("down_proj",)
    stored, experts = {}, []
    for number, expert in enumerate(tensor):
        values = []
        for kind, matrix in zip(kinds, expert.chunk(len(kinds)), strict=True):
            codes, scales = quantise(matrix, scale_dtype)
            stored |= {
                f"{prefix}.{number}.{kind}.weight": codes,
                f"{prefix}.{number}.{kind}.weight_scale_inv": scales,
            }
            values.append(by_element(codes, scales))
        experts.append(torch.cat(values))
    return stored, torch.stack(experts)


EXPERTS = {
    "fp8-fused hub": lambda *arguments: fused(*arguments, turned=True),
    "fp8-fused runtime": lambda *arguments: fused(*arguments, turned=False),
    "fp8-per-expert": separate,
}


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("experts", EXPERTS)
def test_values_are_code_times_scale(run_export, write_checkpoint, experts, scale_dtype):
    config, stored, expected = fp8_checkpoint(experts, scale_dtype)
    exported = run_export(write_checkpoint(config, stored))
    loaded = Artifact.open(exported.directory).load(expected)
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name
    layouts = {r.source_layout for r in exported.manifest.tensors if ".experts." in r.name}
    assert layouts == {experts.split()[0]}
    assert exported.manifest.by_name()[next(n for n in expected if "q_proj" in n)].source_layout == "fp8"


def test_codes_without_scales_are_listed(run_export, write_checkpoint):
    config, stored, _ = fp8_checkpoint("fp8-per-expert", torch.float32)
    name = "model.language_model.layers.0.self_attn.o_proj.weight"
    del stored[f"{name}_scale_inv"]
    with pytest.raises(CheckpointError, match=r"FP8 codes without a scale alongside them \(1\):\n  " + name):
        run_export(write_checkpoint(config, stored))


def test_scales_of_a_wrong_shape_are_listed(run_export, write_checkpoint):
    config, stored, _ = fp8_checkpoint("fp8-per-expert", torch.float32)
    name = "model.language_model.layers.0.self_attn.o_proj.weight_scale_inv"
    stored[name] = stored[name][:-1].contiguous()
    with pytest.raises(CheckpointError, match=r"o_proj\.weight_scale_inv \[3, 8\] instead of \[4, 8\]"):
        run_export(write_checkpoint(config, stored))


def test_chunks_do_not_change_values(monkeypatch):
    codes, scales = quantise(torch.randn(100, 40), torch.float32)
    tensors = {"x": codes, "s": scales}
    scale = BlockScale(SourceTensor("s", "f", "F32", tuple(scales.shape)), BLOCK, BLOCK)
    recipe = Plain(SourceTensor("x", "f", "F8_E4M3", (100, 40)), scale)
    reader = SimpleNamespace(read_rows=lambda tensor, start, stop: tensors[tensor.name][start:stop])
    whole = dequantise(codes, scales, BLOCK, BLOCK)
    monkeypatch.setattr("export.recipe.CHUNK_BYTES", 40 * 20)  # 20 rows, rounded down to one block of 16
    chunks = list(recipe.chunks(reader, torch.float32))
    assert [len(chunk) for chunk in chunks] == [16] * 6 + [4]
    assert torch.equal(torch.cat(chunks), whole)
