"""Directories that people have: what is taken, and what is refused with its cause and the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from broker_pipeline.errors import CheckpointError
from export.source.checkpoint import LocalCheckpoint
from export.source.weight_listing import weight_file_names
from stages.artifact import Artifact

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.fixture
def source(write_checkpoint, dense_config, dense_weights) -> Path:
    return write_checkpoint(dense_config, dense_weights)


@pytest.fixture
def sharded(write_checkpoint, dense_config, dense_weights) -> Path:
    return write_checkpoint(dense_config, dense_weights, name="sharded", num_shards=4)


def edit_index(directory: Path, change) -> None:
    content = json.loads((directory / INDEX).read_text())
    change(content["weight_map"])
    (directory / INDEX).write_text(json.dumps(content))


def test_shards_without_an_index_are_a_set_by_their_names(sharded, source, run_export):
    (sharded / INDEX).unlink()
    exported = run_export(sharded)
    assert Artifact.open(exported.directory).fingerprint == run_export(source).manifest.fingerprint


def test_a_single_file_of_another_name_is_taken(source, run_export):
    whole = run_export(source).manifest.fingerprint
    (source / "model.safetensors").rename(source / "weights.safetensors")
    assert run_export(source, source.with_name("again")).manifest.fingerprint == whole


def test_one_whole_file_counts_before_an_index_that_was_left_there(source, sharded, run_export):
    shutil.copy(sharded / INDEX, source / INDEX)
    assert run_export(source).manifest.fingerprint == run_export(sharded).manifest.fingerprint


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (SHARDS[:2], r"lacks 1 of 3 weight files: model-00003-of-00003\.safetensors\. Download"),
        (
            ["a.safetensors", "b.safetensors"],
            r"several weight files and no model\.safe.*index\.json.*a\.s.*Copy",
        ),
        ([*SHARDS, "other-00001-of-00002.safetensors"], r"several weight files"),
        (["pytorch_model.bin"], r"pickled files \(pytorch_model\.bin\).*can run code.*save_pretrained"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], r"pickled files.*save_pretrained"),
        (["consolidated.00.pth", "model.pt"], r"pickled files \(consolidated\.00\.pth, model\.pt\)"),
        (["model-q4.gguf"], r"in model-q4\.gguf: only safetensors are read\. Use the checkpoint they were made of"),
        (["training_args.bin", "optimizer.pt", "README.md"], r"no weights: neither model\.safetensors nor"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            r"LoRA adapter.*merge_and_unload.*export that",
        ),
        (["adapter_config.json", "model.safetensors"], r"LoRA adapter"),
        ([], r"no weights.*Download it again"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_its_cause_and_remedy(names, match):
    with pytest.raises(CheckpointError, match=match):
        weight_file_names(names, None)


def test_shards_of_a_whole_set_are_taken_whatever_lies_beside_them():
    assert weight_file_names([*SHARDS, "training_args.bin", "optimizer.pt", "config.json"], None) == SHARDS


@pytest.mark.parametrize("has_config", [True, False])
def test_a_lora_folder_is_named_for_what_it_is(source, has_config):
    (source / "adapter_config.json").write_text("{}")
    (source / "model.safetensors").rename(source / "adapter_model.safetensors")
    if not has_config:
        (source / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*Merge it"):
        LocalCheckpoint(source)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_files_that_git_lfs_did_not_fetch_are_named(source, run_export, name):
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer.*git lfs pull"):
        run_export(source)


def test_no_config(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json$"):
        LocalCheckpoint(tmp_path)


def test_what_is_no_directory_is_said_in_a_sentence(source):
    with pytest.raises(CheckpointError, match=r"cannot list .*config\.json: Not a directory"):
        LocalCheckpoint(source / "config.json")


def test_a_directory_above_the_checkpoint_says_where_it_is(source, tmp_path):
    below = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    below.parent.mkdir(parents=True)
    source.rename(below)
    with pytest.raises(CheckpointError, match=r"has no config\.json; .*snapshots/0123abc has one"):
        LocalCheckpoint(tmp_path / "models--owner--name")


def test_absent_shards_are_listed(sharded):
    (sharded / "model-00002-of-00004.safetensors").unlink()
    (sharded / "model-00004-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 2 of 4 .* model-00002-of-00004.*, model-00004-of-00004"):
        LocalCheckpoint(sharded)


def test_truncated_shard(source):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        LocalCheckpoint(source)


def test_index_that_names_a_path(sharded):
    edit_index(sharded, lambda listed: listed.update({next(iter(listed)): "../elsewhere.safetensors"}))
    with pytest.raises(CheckpointError, match=r"no shards: \.\./elsewhere"):
        LocalCheckpoint(sharded)


def test_index_and_shards_that_differ(sharded):
    edit_index(sharded, lambda listed: listed.pop("model.language_model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"differ in these tensors:\n  model\.language_model\.norm\.weight$"):
        LocalCheckpoint(sharded)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_link_that_leads_nowhere_is_not_taken_for_absence(source, name):
    """As a pruned cache of the hub leaves them."""
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to("gone")
    with pytest.raises(CheckpointError, match=f"{name} is not a regular file, or a link that leads nowhere"):
        LocalCheckpoint(source)
