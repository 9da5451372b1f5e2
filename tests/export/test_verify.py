from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError
from export.verify import verify_artifact
from tests.kit.models.random_checkpoints import write_random_checkpoint


@pytest.fixture
def artifact(tmp_path, run_export) -> Path:
    source = write_random_checkpoint(tmp_path / "source", moe=True, tied=False, num_layers=3, dtype=torch.bfloat16)
    return run_export(source, packed=True).directory


def verify(directory: Path, **options):
    return verify_artifact(
        directory, allow_missing=options.get("allow_missing", False), console=Console(quiet=True), num_workers=2
    )


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_fresh_artifact_is_whole(artifact):
    result = verify(artifact)
    assert result.absent == ()
    assert result.size_bytes > sum(path.stat().st_size for path in artifact.glob("*.safetensors"))


@pytest.mark.parametrize("position", [100, -1, -5000])
@pytest.mark.parametrize("name", ["block-00001.safetensors", "vision.safetensors", "weights.pt"])
def test_a_flipped_bit_is_found(artifact, name, position):
    flip(artifact / name, position)
    with pytest.raises(ArtifactCorruptError, match=name):
        verify(artifact)


def test_the_altered_tensor_is_named(artifact):
    flip(artifact / "head.safetensors", -1)
    with pytest.raises(ArtifactCorruptError, match=r"head\.safetensors: lm_head\.weight was altered"):
        verify(artifact)


def test_every_side_file_is_checked(artifact):
    names = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "generation_config.json",
    ]
    for name in names:
        flip(artifact / name, 0)
    with pytest.raises(ArtifactCorruptError) as found:
        verify(artifact)
    assert f"({len(names)} findings)" in found.value.message
    for name in names:
        assert f"{name}: was altered" in found.value.message


def test_the_configuration_is_checked_and_so_is_the_rest(artifact):
    flip(artifact / "hf_config.json", -2)
    flip(artifact / "head.safetensors", -1)
    (artifact / "old").mkdir()
    with pytest.raises(ArtifactCorruptError, match=r"\(3 findings\)") as found:
        verify(artifact)
    for finding in ("hf_config.json: was altered", "head.safetensors: lm_head.weight was", "old: is no part"):
        assert finding in found.value.message
    (artifact / "hf_config.json").unlink()
    with pytest.raises(ArtifactCorruptError, match=r"hf_config\.json(.|\n)*head\.safetensors"):
        verify(artifact)


@pytest.mark.parametrize(("change", "said"), [(-1, "bytes instead of"), (1, "bytes instead of")])
def test_a_wrong_size_is_found(artifact, change, said):
    path = artifact / "block-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0")
    with pytest.raises(ArtifactCorruptError, match=said):
        verify(artifact)


def test_extra_files_and_directories_are_found(artifact):
    (artifact / "block-00003.safetensors").write_bytes(b"")
    (artifact / "old").mkdir()
    with pytest.raises(ArtifactCorruptError) as found:
        verify(artifact)
    assert "block-00003.safetensors: is no part of the artifact" in found.value.message
    assert "old: is no part of the artifact" in found.value.message


def test_absent_files_are_found_unless_they_may_be(artifact):
    (artifact / "block-00001.safetensors").unlink()
    with pytest.raises(ArtifactCorruptError, match=r"block-00001\.safetensors: missing"):
        verify(artifact)
    assert verify(artifact, allow_missing=True).absent == ("block-00001.safetensors",)


def test_absent_side_files_are_never_allowed(artifact):
    (artifact / "tokenizer.json").unlink()
    with pytest.raises(ArtifactCorruptError, match=r"tokenizer\.json: missing"):
        verify(artifact, allow_missing=True)


def test_swapped_blocks_are_found(artifact):
    first, second = artifact / "block-00000.safetensors", artifact / "block-00001.safetensors"
    swap = artifact.parent / "swap"
    shutil.move(first, swap)
    shutil.move(second, first)
    shutil.move(swap, second)
    with pytest.raises(ArtifactCorruptError, match="its header was altered"):
        verify(artifact)


def test_an_edited_manifest_is_found(artifact):
    path = artifact / "weights_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tensors"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactCorruptError, match="do not add up to its fingerprint"):
        verify(artifact)


def test_weights_packed_from_another_artifact_are_found(artifact):
    path = artifact / "packed_manifest.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"fingerprint": "0" * 64}))
    with pytest.raises(ArtifactCorruptError, match="packed from another artifact"):
        verify(artifact)


def test_a_directory_that_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactMissingError, match="broker-pipeline export SOURCE TARGET"):
        verify(tmp_path)
