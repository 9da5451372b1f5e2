"""What is wrong is named: by part and tensor, by file, by token."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from rich.console import Console

from broker_pipeline.errors import ConfigurationError
from export.parity import ours
from export.parity.terminal import compare_directories
from export.verify import verify_artifact
from stages.qwen3_vl.text import rms_norm
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.models.tiny_models import tiny_checkpoint

LAYER = "model.language_model.layers.2."


def flip_bit(path: Path, tensor: str, value: int) -> None:
    """Flip the lowest bit of one 16-bit value of a tensor in a safetensors file."""
    content = bytearray(path.read_bytes())
    (header_bytes,) = struct.unpack("<Q", content[:8])
    start, _ = json.loads(content[8 : 8 + header_bytes])[tensor]["data_offsets"]
    content[8 + header_bytes + start + 2 * value] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tensor", "file", "part"),
    [
        (LAYER + "mlp.experts.gate_up_proj", "block-00002.safetensors", "layers.2"),
        (LAYER + "self_attn.q_norm.weight", "block-00002.safetensors", "layers.2"),
        ("model.visual.blocks.1.mlp.linear_fc1.bias", "vision.safetensors", "visual.blocks.1"),
        ("model.visual.deepstack_merger_list.2.norm.weight", "vision.safetensors", "visual.deepstack_merger_list.2"),
        ("model.visual.pos_embed.weight", "vision.safetensors", "visual.patch_embed"),
        ("model.language_model.embed_tokens.weight", "embed.safetensors", "embed_tokens"),
        ("model.language_model.norm.weight", "head.safetensors", "lm_head"),
    ],
)
def test_one_flipped_bit_is_named_by_part_and_tensor(checkpoint, run_export, compare, tensor, file, part):
    artifact = run_export(checkpoint).directory
    flip_bit(artifact / file, tensor, 21)
    code, receipt, output = compare(artifact, checkpoint, "--tokens", 4)
    assert code == 1
    assert receipt.first_beyond == part
    [damaged] = [each for each in receipt.parts if not each.is_within]
    [sentence] = damaged.findings
    assert sentence.startswith(f"{tensor} ({file}): 1 of ")
    assert sentence.endswith("the artifact was altered")
    assert f"DIFFERENT, first in {part}" in output
    assert f"{part}: {tensor}" in output
    assert receipt.greedy_left_out == "parts are different"


def test_the_place_and_both_values_are_said(checkpoint, run_export, compare):
    artifact = run_export(checkpoint).directory
    name = LAYER + "mlp.experts.down_proj"  # [8, 64, 40]
    flip_bit(artifact / "block-00002.safetensors", name, 3 * 64 * 40 + 5 * 40 + 7)
    _, receipt, _ = compare(artifact, checkpoint)
    [sentence] = receipt.worst["layers"].findings
    assert "the first at [3, 5, 7]: 0x" in sentence
    ours_bits, theirs_bits = (int(word[2:6], 16) for word in sentence.split() if word.startswith("0x"))
    assert ours_bits ^ theirs_bits == 1


def test_a_checkpoint_that_has_changed_since_its_export(checkpoint, run_export, compare):
    artifact = run_export(checkpoint).directory
    flip_bit(checkpoint / "model.safetensors", LAYER + "post_attention_layernorm.weight", 0)
    code, receipt, _ = compare(artifact, checkpoint)
    assert code == 1
    [sentence] = receipt.worst["layers"].findings
    assert sentence.endswith("the checkpoint has changed since its export")


def test_a_weight_that_is_not_finite_hides_no_later_part(checkpoint, run_export, compare):
    artifact = run_export(checkpoint).directory
    path = artifact / "block-00001.safetensors"
    content = bytearray(path.read_bytes())
    (header_bytes,) = struct.unpack("<Q", content[:8])
    tensor = "model.language_model.layers.1.input_layernorm.weight"
    start, _ = json.loads(content[8 : 8 + header_bytes])[tensor]["data_offsets"]
    content[8 + header_bytes + start : 8 + header_bytes + start + 2] = b"\x80\x7f"  # infinity
    path.write_bytes(content)
    code, receipt, _ = compare(artifact, checkpoint)
    assert code == 1
    assert receipt.worst["layers"].name == "layers.1"
    assert receipt.worst["layers"].difference.relative > 1e308
    assert [part.name for part in receipt.parts if not part.is_within] == ["layers.1"]


def test_a_template_that_has_changed_is_seen_in_the_tokens(checkpoint, run_export, compare):
    artifact = run_export(checkpoint).directory
    for name in ("chat_template.json", "tokenizer_config.json"):
        text = (checkpoint / name).read_text()
        (checkpoint / name).write_text(text.replace("|>assistant", "|>model"))
    code, receipt, output = compare(artifact, checkpoint)
    assert code == 1
    assert receipt.first_beyond == "files"
    assert "files: chat_template.json is not the checkpoint's" in output
    assert "input_ids: texts: shape" in output


def test_a_computation_that_is_wrong_is_found_with_right_weights(compare, monkeypatch):
    monkeypatch.setattr(ours, "rms_norm", lambda x, weight, _: rms_norm(x, weight, 1e-3))
    options = {"num_layers": 3}
    code, receipt, _ = compare(tiny_artifact(**options), tiny_checkpoint(**options))
    assert code == 1
    assert receipt.first_beyond == "lm_head"
    assert receipt.worst["lm_head"].findings == ()


@pytest.mark.parametrize("place", ["a_directory", "gone/receipt.json", "source.artifact/receipt.json", "a_link"])
def test_a_receipt_replaces_nothing_but_a_file(checkpoint, run_export, tmp_path, place):
    artifact = run_export(checkpoint).directory
    (tmp_path / "a_directory").mkdir()
    (tmp_path / "a_link").symlink_to("/dev/full")
    with pytest.raises(ConfigurationError) as caught:
        compare_directories(artifact, checkpoint, artifact.parent / place, 0)
    assert caught.value.field == "receipt"
    assert verify_artifact(artifact, allow_missing=False, console=Console(quiet=True), num_workers=1)
