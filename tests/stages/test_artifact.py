from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from broker_pipeline.errors import (
    ArtifactCorruptError,
    ArtifactMissingError,
    TensorMissingError,
)
from export.exporter import ExportOptions, export_checkpoint
from export.source.checkpoint import LocalCheckpoint
from stages.artifact import Artifact
from stages.qwen3_vl.tensors import EMBED_TOKENS, LM_HEAD, stage_shapes, vision_shapes
from tests.kit.models.random_checkpoints import write_random_checkpoint


def export(tmp_path: Path, **options) -> tuple[Path, dict[str, torch.Tensor]]:
    source = write_random_checkpoint(tmp_path / "source", **options)
    target = tmp_path / "artifact"
    export_checkpoint(LocalCheckpoint(source), target, ExportOptions(), Console(quiet=True))
    return target, load_file(source / "model.safetensors")


@pytest.fixture
def tied(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    return export(tmp_path, tied=True, num_layers=4, dtype=torch.bfloat16)


@pytest.mark.parametrize("cuts", [(0, 4), (0, 1, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4)])
def test_any_cut_loads_its_own_tensors_only(tied, cuts):
    directory, expected = tied
    artifact = Artifact.open(directory)
    seen = set()
    for start, stop in pairwise(cuts):
        names = stage_shapes(artifact.config, start, stop)
        tensors = artifact.load(names)
        assert tensors.keys() == names.keys()
        for name, shape in names.items():
            assert tensors[name].shape == shape
            assert torch.equal(tensors[name], expected[name])
        seen |= tensors.keys()
    seen |= artifact.load(vision_shapes(artifact.config)).keys()
    assert seen == expected.keys()


def test_a_host_needs_the_files_of_its_blocks_only(tied):
    directory, expected = tied
    for name in ("embed", "head", "vision", "block-00000", "block-00003"):
        (directory / f"{name}.safetensors").unlink()
    artifact = Artifact.open(directory)
    middle = artifact.load(stage_shapes(artifact.config, 1, 3))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in middle.items())
    with pytest.raises(ArtifactMissingError, match=r"block-00003\.safetensors, embed\.safetensors, head") as lacks:
        artifact.load(stage_shapes(artifact.config, 2, 4))
    assert "block-00002" not in lacks.value.message


def test_dtype_and_alias(tied):
    directory, expected = tied
    artifact = Artifact.open(directory)
    assert artifact.dtype is torch.bfloat16
    assert artifact.config.dtype == "bfloat16"
    loaded = artifact.load([LM_HEAD], dtype=torch.float32)
    assert torch.equal(loaded[LM_HEAD], expected[EMBED_TOKENS].float())


def test_unknown_names_are_listed(tied):
    artifact = Artifact.open(tied[0])
    with pytest.raises(TensorMissingError, match=r"layers\.9\.x, nonsense"):
        artifact.load([EMBED_TOKENS, "layers.9.x", "nonsense"])


def test_side_files(tied):
    artifact = Artifact.open(tied[0])
    assert json.loads(artifact.path("tokenizer_config.json").read_text())["tokenizer_class"]
    assert artifact.has("tokenizer.json")
    assert not artifact.has("vocab.json")
    with pytest.raises(ArtifactMissingError, match=r"had no vocab\.json"):
        artifact.path("vocab.json")
    with pytest.raises(ArtifactMissingError):
        artifact.path("../artifact/tokenizer.json")


class TestOpenRefuses:
    def test_a_checkpoint(self, tmp_path):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        with pytest.raises(ArtifactMissingError, match="broker-pipeline export"):
            Artifact.open(source)

    def test_a_path_that_does_not_exist(self, tmp_path):
        with pytest.raises(ArtifactMissingError, match="is not an artifact"):
            Artifact.open(tmp_path / "nowhere")

    def test_a_truncated_file(self, tied):
        path = tied[0] / "block-00001.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ArtifactCorruptError, match=r"block-00001\.safetensors has \d+ bytes instead of"):
            Artifact.open(tied[0])

    def test_a_missing_side_file(self, tied):
        (tied[0] / "tokenizer.json").unlink()
        with pytest.raises(ArtifactMissingError, match=r"lacks tokenizer\.json"):
            Artifact.open(tied[0])

    def test_an_altered_side_file_of_the_same_size(self, tied):
        path = tied[0] / "tokenizer.json"
        path.write_text(path.read_text().replace("im_end", "im_emd"))
        with pytest.raises(ArtifactCorruptError, match=r"tokenizer\.json was altered"):
            Artifact.open(tied[0])

    def test_a_side_file_that_was_put_there_later(self, tied):
        """A template of one's own would decide prompts on this host, under the fingerprint of all others."""
        (tied[0] / "chat_template.jinja").write_text("{{ messages }}")
        with pytest.raises(ArtifactCorruptError, match=r"chat_template\.jinja is no part of the artifact"):
            Artifact.open(tied[0])

    def test_an_altered_configuration(self, tied):
        path = tied[0] / "hf_config.json"
        path.write_text(path.read_text().replace("5000000", "1000000"))
        with pytest.raises(ArtifactCorruptError, match="was altered"):
            Artifact.open(tied[0])

    def test_another_format_version(self, tied):
        path = tied[0] / "weights_manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2, "new_key": 1}))
        with pytest.raises(ArtifactCorruptError, match="format version 2 and this program reads version 1"):
            Artifact.open(tied[0])

    def test_an_unknown_key(self, tied):
        path = tied[0] / "weights_manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": 1}))
        with pytest.raises(ArtifactCorruptError, match="unknown field `extra`"):
            Artifact.open(tied[0])

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", ".hidden", ""])
    def test_a_file_name_that_leaves_the_directory(self, tied, name):
        path = tied[0] / "weights_manifest.json"
        manifest = json.loads(path.read_text())
        manifest["side_files"][0]["name"] = name
        path.write_text(json.dumps(manifest))
        with pytest.raises(ArtifactCorruptError, match="not a weights manifest"):
            Artifact.open(tied[0])

    def test_a_file_whose_header_is_damaged(self, tied):
        path = tied[0] / "embed.safetensors"
        content = bytearray(path.read_bytes())
        content[0] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(ArtifactCorruptError, match=r"embed\.safetensors"):
            Artifact.open(tied[0]).load([EMBED_TOKENS])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_loads_to_the_device(tied):
    directory, expected = tied
    loaded = Artifact.open(directory).load(expected, device="cuda:0")
    for name, tensor in expected.items():
        assert loaded[name].device.type == "cuda"
        assert torch.equal(loaded[name].cpu(), tensor)


def test_copies_are_artifacts_too(tied, tmp_path):
    shutil.copytree(tied[0], tmp_path / "copy")
    assert Artifact.open(tmp_path / "copy").fingerprint == Artifact.open(tied[0]).fingerprint
