"""Weights on their way into memory: every byte checked, once a file and change, and out of reach of the file then."""

from __future__ import annotations

import os
import shutil
from io import FileIO
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from broker_pipeline.artifact_manifest import MANIFEST_NAME, read_manifest
from broker_pipeline.errors import ArtifactCorruptError
from stages.artifact import Artifact
from stages.qwen3_vl.tensors import model_shapes, stage_shapes
from stages.weights import weight_files
from tests.kit.models.tiny_artifacts import tiny_artifact

BLOCK = "block-00002.safetensors"
OLD_NS = 10**18


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("stages.weights.verified_files._YOUNG_S", 0.0)  # all files here were just written
    return tmp_path / "cache"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    copied = shutil.copytree(tiny_artifact(), tmp_path / "artifact")
    for path in copied.iterdir():
        os.utime(path, ns=(OLD_NS, OLD_NS))
    return copied


def load(directory: Path, *, verify: bool = True) -> tuple[dict[str, Tensor], set[str]]:
    """Return all tensors, and the names of the files that were hashed as a whole."""
    artifact = Artifact.open(directory)
    with capture_logs() as logs:
        tensors = artifact.load(model_shapes(artifact.config), verify=verify)
    return tensors, {line["file"] for line in logs if line["event"] == "weight_file_verified"}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def flip(path: Path, place: int, *, is_noticed: bool = True) -> None:
    """Flip a bit in place; unless `is_noticed`, the file's time of change stays what it was."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    if not is_noticed:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_one_flipped_bit_is_named_by_file_and_tensor(directory: Path) -> None:
    records = read_manifest(directory).stored_in(BLOCK)
    size_bytes = (directory / BLOCK).stat().st_size
    for number, record in enumerate(records):
        flip(directory / BLOCK, size_bytes - sum(after.size_bytes for after in records[number:]))
        with pytest.raises(ArtifactCorruptError) as damaged:
            load(directory)
        assert str(directory / BLOCK) in damaged.value.message
        assert record.name in damaged.value.message
        assert "export verify" in damaged.value.message
        flip(directory / BLOCK, size_bytes - sum(after.size_bytes for after in records[number:]))
    load(directory)


def test_damage_in_other_files_is_nobodys_matter(directory: Path) -> None:
    flip(directory / BLOCK, 5000)
    artifact = Artifact.open(directory)
    assert artifact.load(stage_shapes(artifact.config, 0, 2))
    with pytest.raises(ArtifactCorruptError, match=BLOCK):
        artifact.load(stage_shapes(artifact.config, 2, 3))


def test_the_impatient_get_what_lies_there(directory: Path) -> None:
    expected, _ = load(directory)
    flip(directory / BLOCK, 5000)
    found, hashed = load(directory, verify=False)
    assert not same(found, expected)
    assert not hashed


def test_a_file_is_hashed_once_and_again_when_it_has_changed(directory: Path) -> None:
    files = {file.name for file in read_manifest(directory).weight_files}
    expected, hashed = load(directory)
    assert hashed == files
    found, hashed = load(directory)
    assert not hashed
    assert same(found, expected)
    os.utime(directory / BLOCK, ns=(OLD_NS, OLD_NS + 1))
    assert load(directory)[1] == {BLOCK}
    shutil.copy2(directory / BLOCK, directory / "copy")
    (directory / "copy").replace(directory / BLOCK)  # another inode, the same times
    assert load(directory)[1] == {BLOCK}
    assert not load(directory)[1]


def test_a_change_that_keeps_size_and_time_is_found(directory: Path) -> None:
    load(directory)
    flip(directory / BLOCK, 5000, is_noticed=False)
    with pytest.raises(ArtifactCorruptError, match=BLOCK):
        load(directory)


def test_what_was_verified_against_another_manifest_is_hashed_again(directory: Path) -> None:
    load(directory)
    other = tiny_artifact(seed=1)
    shutil.copyfile(other / MANIFEST_NAME, directory / MANIFEST_NAME)
    with pytest.raises(ArtifactCorruptError, match="is not what the export wrote"):
        load(directory)


def test_a_file_that_was_just_written_is_not_remembered(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever time it carries: what a copy says of a file's age is that of the original."""
    monkeypatch.setattr("stages.weights.verified_files._YOUNG_S", 60.0)
    load(directory)
    assert len(load(directory)[1]) == len(read_manifest(directory).weight_files)


def test_a_cache_that_cannot_be_written_costs_a_hash_each_time(directory: Path, cache: Path) -> None:
    cache.write_text("no directory")
    for _ in range(2):
        assert len(load(directory)[1]) == len(read_manifest(directory).weight_files)


@pytest.mark.parametrize("verify", [True, False])
def test_nothing_that_happens_to_the_files_reaches_what_was_loaded(directory: Path, verify: bool) -> None:
    expected = {name: tensor.clone() for name, tensor in load(directory)[0].items()}
    found, _ = load(directory, verify=verify)
    for path in directory.glob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(b"\x55" * path.stat().st_size)
        os.truncate(path, 10)
    assert same(found, expected)
    mapped = Path("/proc/self/maps").read_text()
    assert str(directory) not in mapped


def test_what_is_loaded_may_be_written_to_and_the_file_stays(directory: Path) -> None:
    tensors, _ = load(directory)
    for tensor in tensors.values():
        tensor.zero_()
    assert all(tensor.abs().sum() > 0 for name, tensor in load(directory)[0].items() if name.endswith("proj.weight"))


def test_a_file_cut_short_while_it_is_read_is_an_error(directory: Path) -> None:
    artifact = Artifact.open(directory)
    os.truncate(directory / BLOCK, (directory / BLOCK).stat().st_size - 1)
    with pytest.raises(ArtifactCorruptError, match=rf"{BLOCK} is damaged.* it ends before its tensors do"):
        artifact.load(stage_shapes(artifact.config, 2, 3))


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_changes_while_it_is_read_is_an_error(
    directory: Path, verify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is not hashed, be it trusted or not looked at: half of a tensor could be another model's."""
    load(directory)
    monkeypatch.setattr("stages.weights.weight_files._PIECE_BYTES", 64)
    fill = weight_files._fill
    places = iter(range(1000))

    def fill_and_copy_over(content: memoryview, file: FileIO) -> None:
        fill(content, file)
        if next(places) == 1:
            flip(directory / BLOCK, 5000)

    monkeypatch.setattr(weight_files, "_fill", fill_and_copy_over)
    artifact = Artifact.open(directory)
    with pytest.raises(ArtifactCorruptError, match=rf"{BLOCK} was changed while it was read|{BLOCK} is damaged"):
        artifact.load(stage_shapes(artifact.config, 2, 3), verify=verify)


@pytest.mark.gpu
@pytest.mark.parametrize("piece_bytes", [1000, 16 << 20])
def test_a_gpu_gets_the_same_in_pieces(directory: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.weights.weight_files._PIECE_BYTES", piece_bytes)
    expected, _ = load(directory)
    artifact = Artifact.open(directory)
    found = artifact.load(model_shapes(artifact.config), "cuda:0")
    assert same({name: tensor.cpu() for name, tensor in found.items()}, expected)
    flip(directory / BLOCK, 5000)
    with pytest.raises(ArtifactCorruptError, match=BLOCK):
        Artifact.open(directory).load(model_shapes(artifact.config), "cuda:0")


def test_pieces_of_any_size_add_up(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = load(directory)
    for piece_bytes in (7, 1000, 4096):
        monkeypatch.setattr("stages.weights.weight_files._PIECE_BYTES", piece_bytes)
        os.utime(directory / BLOCK, ns=(OLD_NS, OLD_NS + piece_bytes))
        assert same(load(directory)[0], expected)
