"""`export --quantize fp8`: codes and scales made from values, or an FP8 checkpoint's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from rich.console import Console
from torch import Tensor

from broker_pipeline.artifact_manifest import MANIFEST_NAME, block_file, fingerprint_of, read_manifest, scale_name
from broker_pipeline.errors import ArtifactCorruptError, CheckpointError, ExportStateError, TargetExistsError
from export.synthetic.random_checkpoint import random_hf_config, random_weights
from export.verify import verify_artifact
from stages.artifact import Artifact
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import is_fp8_matrix, model_shapes
from stages.weights.fp8_matrix import Fp8Matrix

LAYOUTS = ("runtime", "hub", "per-expert")
GATE_UP = "model.language_model.layers.1.mlp.experts.gate_up_proj"


def config_of(*, moe: bool, expert_size: int = 100) -> dict[str, Any]:
    """A model whose matrices are cut by blocks of 128: H 160, I 300, gate and up of an expert 2 x 100."""
    config = random_hf_config(moe=moe, tied=False, num_layers=2, dtype=torch.bfloat16)
    config["text_config"] |= {"hidden_size": 160, "intermediate_size": 300}
    if moe:
        config["text_config"]["moe_intermediate_size"] = expert_size
    config["vision_config"] |= {"out_hidden_size": 160, "deepstack_visual_indexes": [0, 1]}
    return config


def weights_of(config: dict[str, Any], seed: int = 3) -> dict[str, Tensor]:
    return random_weights(ModelConfig.from_json(config), seed=seed, dtype=torch.bfloat16)


def by_block(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The reference: block after block of one matrix."""
    scales = torch.empty(math.ceil(matrix.shape[0] / 128), math.ceil(matrix.shape[1] / 128))
    codes = torch.empty(matrix.shape, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128))
            scales[i, j] = max(float(matrix[block].abs().max()) / 448, 2.0**-126)
            codes[block] = (matrix[block].float() / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales


def fp8_of(tensor: Tensor) -> Fp8Matrix:
    if tensor.dim() == 2:
        return Fp8Matrix(*by_block(tensor))
    parts = [by_block(expert) for expert in tensor]
    codes = torch.stack([codes.view(torch.uint8) for codes, _ in parts]).view(torch.float8_e4m3fn)
    return Fp8Matrix(codes, torch.stack([scales for _, scales in parts]))


def stored_as(weights: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Experts, codes and scales of them, as a checkpoint of this layout has them."""
    stored: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".experts." not in name or layout == "runtime":
            stored[name] = tensor
        elif layout == "hub":
            stored[name] = bits(tensor).transpose(1, 2).contiguous().view(tensor.dtype)
        else:
            prefix, _, kind = name.rpartition(".")
            suffix = "weight_scale_inv" if kind.endswith("_scale_inv") else "weight"
            kinds = ("gate_proj", "up_proj") if kind.startswith("gate_up") else ("down_proj",)
            for number, expert in enumerate(bits(tensor)):
                for part, half in zip(kinds, expert.chunk(len(kinds)), strict=True):
                    stored[f"{prefix}.{number}.{part}.{suffix}"] = half.contiguous().view(tensor.dtype)
    return stored


def bits(tensor: Tensor) -> Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize])


def read(directory: Path) -> dict[str, Tensor | Fp8Matrix]:
    artifact = Artifact.open(directory)
    with artifact.reading(model_shapes(artifact.config)) as tensors:
        return dict(tensors)


def assert_holds(directory: Path, expected: dict[str, Tensor | Fp8Matrix]) -> None:
    found = read(directory)
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        have = found[name]
        if isinstance(want, Fp8Matrix):
            assert isinstance(have, Fp8Matrix), name
            assert torch.equal(bits(have.codes), bits(want.codes)), name
            assert torch.equal(have.scales, want.scales), name
        else:
            assert torch.equal(have, want), name


@pytest.mark.parametrize(("moe", "layout"), [(False, "runtime"), *((True, layout) for layout in LAYOUTS)])
def test_values_become_codes_and_scales(run_export, write_checkpoint, moe, layout):
    config = config_of(moe=moe)
    weights = weights_of(config)
    exported = run_export(write_checkpoint(config, stored_as(weights, layout)), quantize="fp8")
    assert_holds(exported.directory, {n: fp8_of(t) if is_fp8_matrix(n) else t for n, t in weights.items()})
    verify_artifact(exported.directory, allow_missing=False, console=Console(quiet=True))


def test_the_layout_of_experts_does_not_matter(run_export, write_checkpoint):
    config = config_of(moe=True)
    fingerprints = {
        run_export(
            write_checkpoint(config, stored_as(weights_of(config), layout), layout), quantize="fp8"
        ).manifest.fingerprint
        for layout in LAYOUTS
    }
    assert len(fingerprints) == 1


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_of_an_fp8_checkpoint_are_kept(run_export, write_checkpoint, layout, scale_dtype):
    config = config_of(moe=True, expert_size=128)
    stored, expected = fp8_checkpoint(config, layout, scale_dtype)
    exported = run_export(write_checkpoint(config, stored), quantize="fp8")
    assert_holds(exported.directory, expected)
    assert exported.manifest.by_name()[GATE_UP].source_layout.startswith("fp8")


def fp8_checkpoint(config, layout, scale_dtype, block=(128, 128)):
    """Return stored tensors and what the artifact should hold; codes are random: no rounding would find them."""
    weights, generator = weights_of(config), torch.Generator().manual_seed(1)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": list(block), "fmt": "e4m3"}
    runtime: dict[str, Tensor] = {}
    expected: dict[str, Tensor | Fp8Matrix] = dict(weights)
    for name, tensor in weights.items():
        if not is_fp8_matrix(name):
            runtime[name] = tensor
            continue
        codes = torch.randint(0, 0x7F, tensor.shape, generator=generator, dtype=torch.uint8).view(torch.float8_e4m3fn)
        *experts, rows, columns = tensor.shape
        shape = (*experts, math.ceil(rows / block[0]), math.ceil(columns / block[1]))
        scales = (torch.rand(shape, generator=generator) / 1000).to(scale_dtype)
        runtime |= {name: codes, scale_name(name): scales}
        expected[name] = Fp8Matrix(codes, scales.float())
    return stored_as(runtime, layout), expected


@pytest.mark.parametrize(("layout", "expert_size", "block"), [("per-expert", 100, 128), ("hub", 128, 64)])
def test_codes_in_other_blocks_are_made_anew(run_export, write_checkpoint, layout, expert_size, block):
    """Gate that ends within a block, and blocks of another size: the values are those of the default export, near."""
    config = config_of(moe=True, expert_size=expert_size)
    if layout == "per-expert":  # each matrix has blocks of its own: take those that are made from values
        weights = weights_of(config)
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}
        stored = {}
        for name, tensor in stored_as(weights, layout).items():
            is_matrix = name.endswith("_proj.weight")
            stored |= (
                dict(zip((name, scale_name(name)), by_block(tensor), strict=True)) if is_matrix else {name: tensor}
            )
    else:
        stored, _ = fp8_checkpoint(config, layout, torch.float32, (block, block))
    source = write_checkpoint(config, stored)
    values = Artifact.open(run_export(source).directory).load([GATE_UP])[GATE_UP].float()
    quantized = run_export(source, source.with_name("quantized"), quantize="fp8")
    found = Artifact.open(quantized.directory).load([GATE_UP])[GATE_UP].float()
    assert 0 < (found - values).norm() / values.norm() < 0.04


def test_zeros_and_the_smallest_values_have_scales(run_export, write_checkpoint):
    config = config_of(moe=False)
    weights = weights_of(config)
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    weights[name][:128, :128] = 0
    weights[name][128:, 256:] = 1e-40
    exported = run_export(write_checkpoint(config, weights), quantize="fp8")
    matrix = read(exported.directory)[name]
    assert matrix.scales[0, 0] == matrix.scales[1, 2] == 2.0**-126
    assert not matrix.dequantised(torch.float32)[:128, :128].any()
    assert matrix.dequantised(torch.float32).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_fp8_cannot_hold_is_refused(run_export, write_checkpoint, value):
    config = config_of(moe=True)
    weights = weights_of(config)
    weights[GATE_UP][5, 150, 130] = value
    with pytest.raises(CheckpointError, match=r"gate_up_proj holds NaN or infinity, which FP8 cannot"):
        run_export(write_checkpoint(config, weights), quantize="fp8")


def test_chunks_do_not_change_values(run_export, write_checkpoint, monkeypatch):
    config = config_of(moe=True)
    source = write_checkpoint(config, stored_as(weights_of(config), "per-expert"))
    whole = run_export(source, quantize="fp8")
    monkeypatch.setattr("export.recipe.CHUNK_BYTES", 30 * 320)
    monkeypatch.setattr("export.fp8._RUN_BYTES", 1)
    again = run_export(source, source.with_name("again"), quantize="fp8")
    assert again.manifest.fingerprint == whole.manifest.fingerprint


def test_an_artifact_takes_half_the_room(run_export, write_checkpoint):
    config = config_of(moe=False)
    source = write_checkpoint(config, weights_of(config))
    plain = run_export(source).manifest
    quantized = run_export(source, source.with_name("quantized"), quantize="fp8").manifest
    sizes = [sum(record.size_bytes for record in each.stored_in(block_file(0))) for each in (plain, quantized)]
    assert 0.5 < sizes[1] / sizes[0] < 0.51


def test_loaded_by_name_values_are_dequantised(run_export, write_checkpoint):
    config = config_of(moe=True)
    weights = weights_of(config)
    artifact = Artifact.open(run_export(write_checkpoint(config, weights), quantize="fp8").directory)
    assert torch.equal(artifact.load([GATE_UP])[GATE_UP], fp8_of(weights[GATE_UP]).dequantised(torch.bfloat16))
    assert artifact.load([GATE_UP], dtype=torch.float32)[GATE_UP].dtype == torch.float32


def test_packed_holds_codes(run_export, write_checkpoint):
    config = config_of(moe=False)
    exported = run_export(write_checkpoint(config, weights_of(config)), quantize="fp8", packed=True)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    packed = torch.load(exported.directory / "weights.pt", weights_only=True)
    matrix = read(exported.directory)[name]
    assert torch.equal(bits(packed[name]), bits(matrix.codes))
    assert packed[name].dtype == torch.float8_e4m3fn
    assert torch.equal(packed[scale_name(name)], matrix.scales)
    verify_artifact(exported.directory, allow_missing=False, console=Console(quiet=True))


def test_the_same_command_finds_its_artifact_and_another_is_refused(run_export, write_checkpoint):
    config = config_of(moe=False)
    source = write_checkpoint(config, weights_of(config))
    assert not run_export(source, quantize="fp8").was_there
    assert run_export(source, quantize="fp8").was_there
    with pytest.raises(TargetExistsError, match="holds another artifact"):
        run_export(source)


def test_an_unfinished_export_goes_on_with_the_same_only(run_export, write_checkpoint, tmp_path):
    config = config_of(moe=True)
    weights = weights_of(config)
    weights[GATE_UP][5, 150, 130] = float("nan")
    source, target = write_checkpoint(config, weights), tmp_path / "target"
    with pytest.raises(CheckpointError, match="NaN"):
        run_export(source, target, quantize="fp8")
    with pytest.raises(ExportStateError, match="with other options"):
        run_export(source, target)


def test_codes_without_scales_are_no_artifact(run_export, write_checkpoint):
    config = config_of(moe=False)
    exported = run_export(write_checkpoint(config, weights_of(config)), quantize="fp8")
    name = "model.language_model.layers.1.self_attn.k_proj.weight"
    tensors = tuple(record for record in exported.manifest.tensors if record.name != scale_name(name))
    altered = msgspec.structs.replace(exported.manifest, tensors=tensors)
    altered = msgspec.structs.replace(altered, fingerprint=fingerprint_of(altered))
    (exported.directory / MANIFEST_NAME).write_bytes(msgspec.json.encode(altered))
    with pytest.raises(ArtifactCorruptError, match=r"k_proj\.weight holds FP8 codes, and no scales fit them"):
        read_manifest(exported.directory)
