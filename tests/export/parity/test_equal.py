"""Whole artifacts are found equal, whatever their checkpoint looks like."""

from __future__ import annotations

import hashlib

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from broker_pipeline.errors import CheckpointError
from export.command import command
from export.parity.part import FP32_TOLERANCE
from export.synthetic.generated_files import write_processor_files, write_text_files
from tests.export import test_fp8
from tests.kit.models.random_checkpoints import write_random_checkpoint
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.models.tiny_models import tiny_checkpoint
from trials.bench.shape_checkpoint import write_shape_checkpoint

KINDS = {
    "files",
    "input_ids",
    "mm_token_type_ids",
    "image_grid_thw",
    "video_grid_thw",
    "pixel_values",
    "pixel_values, resized",
    "pixel_values_videos",
    "position_ids",
    "rope_deltas",
    "visual.patch_embed",
    "visual.blocks",
    "visual.merger",
    "visual.deepstack_merger_list",
    "embed_tokens",
    "layers",
    "lm_head",
}


@pytest.mark.parametrize(
    "options",
    [
        {"moe": False, "tied": True, "dtype": torch.bfloat16},
        {"moe": True, "tied": False, "dtype": torch.bfloat16},
        {"moe": True, "tied": True, "dtype": torch.float32, "expert_layout": "per_expert"},
        {"moe": False, "tied": False, "dtype": torch.float32},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_part_is_equal(compare, options):
    artifact = tiny_artifact(num_layers=4, **options)
    code, receipt, output = compare(artifact, tiny_checkpoint(num_layers=4, **options), "--tokens", 6)
    assert code == 0
    assert receipt.is_within
    assert receipt.first_beyond is None
    assert set(receipt.worst) == KINDS
    assert [part.name for part in receipt.parts if part.kind == "layers"] == [f"layers.{n}" for n in range(4)]
    assert [each.num_equal for each in receipt.greedy] == [6] * 4
    computed = [part for part in receipt.parts if part.kind.startswith(("visual", "layers")) or part.name == "lm_head"]
    if options["dtype"] == torch.bfloat16:
        assert all(part.difference.num_different == 0 for part in computed)
    else:
        assert all(part.difference.relative <= FP32_TOLERANCE for part in computed)
    assert "equal within rounding" in output
    assert "1/7 equal visual.merger" in output


def test_the_receipt_says_what_was_compared(compare):
    options = {"moe": False, "tied": True, "dtype": torch.bfloat16, "num_layers": 4}
    _, receipt, output = compare(tiny_artifact(**options), tiny_checkpoint(**options))
    tokenizer = hashlib.sha256((tiny_checkpoint(**options) / "tokenizer.json").read_bytes()).hexdigest()
    assert receipt.model.hashes["tokenizer.json"] == tokenizer
    assert receipt.model.fingerprint in (tiny_artifact(**options) / "weights_manifest.json").read_text()
    assert receipt.versions["torch"] == torch.__version__
    assert receipt.versions["transformers"]
    assert receipt.num_patches > 0
    assert receipt.peak_memory_bytes > receipt.model.weights_bytes
    assert receipt.greedy_left_out == "none were asked for"
    assert "greedy tokens: left out, none were asked for" in output


@pytest.mark.parametrize("experts", list(test_fp8.EXPERTS))
def test_fp8_weights_are_dequantised_as_transformers_does(write_checkpoint, run_export, compare, monkeypatch, experts):
    monkeypatch.setattr(test_fp8, "BLOCK", 8)  # transformers takes whole blocks only
    config, stored, _ = test_fp8.fp8_checkpoint(experts, torch.bfloat16)
    source = write_checkpoint(config, stored)
    write_text_files(source)
    write_processor_files(source)
    code, receipt, output = compare(run_export(source).directory, source)
    assert code == 0, output
    assert receipt.is_within


@pytest.mark.parametrize("moe", [False, True])
def test_values_put_into_fp8_are_the_nearest(tmp_path, run_export, compare, moe):
    source = write_random_checkpoint(tmp_path / "source", moe=moe, num_layers=4, dtype=torch.bfloat16)
    artifact = run_export(source, quantize="fp8").directory
    code, receipt, output = compare(artifact, source, "--tokens", 3)
    assert code == 0, output
    assert [each.num_equal for each in receipt.greedy] == [3] * 4
    name = "model.language_model.layers.2.self_attn.o_proj.weight"
    tensors = load_file(source / "model.safetensors")
    tensors[name][3, 5] += tensors[name].abs().max()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    code, receipt, output = compare(artifact, source)
    assert (code, receipt.first_beyond) == (1, "layers.2")
    assert f"{name} (block-00002.safetensors)" in output.replace("\n", "")
    assert "the checkpoint has changed since its export" in output.replace("\n", " ")


def test_a_checkpoint_of_a_published_shape(tmp_path, run_export, compare):
    source = write_shape_checkpoint(tmp_path / "source", "tiny", num_layers=2)
    again = write_shape_checkpoint(tmp_path / "again", "tiny", num_layers=2)
    assert (source / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    code, receipt, output = compare(run_export(source).directory, source)
    assert code == 0, output
    assert (receipt.model.dtype, receipt.model.num_layers) == ("bfloat16", 2)


def test_another_checkpoint_of_the_same_shape_is_refused(compare):
    options = {"num_layers": 3, "dtype": torch.bfloat16}
    with pytest.raises(CheckpointError, match="another checkpoint than the one"):
        compare(tiny_artifact(**options), tiny_checkpoint(seed=1, **options))


def test_a_checkpoint_of_another_shape_is_refused(compare):
    with pytest.raises(CheckpointError, match=r"its config\.json is another one"):
        compare(tiny_artifact(num_layers=3), tiny_checkpoint(num_layers=4))


def test_a_receipt_needs_a_checkpoint(tmp_path):
    arguments = ["verify", str(tiny_artifact(num_layers=3)), "--receipt", str(tmp_path / "receipt.json")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert "--receipt and --tokens are for --parity CHECKPOINT" in result.output
