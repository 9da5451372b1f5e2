"""Files by blocks, held against the tensors that stages ask for."""

from __future__ import annotations

import shlex
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker_pipeline.artifact_files.selection import fetch_command, stage_files
from broker_pipeline.artifact_manifest import HEAD_FILE, VISION_FILE
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.fetch.command import command
from stages.artifact import Artifact
from stages.qwen3_vl.tensors import stage_shapes, vision_shapes
from tests.kit.models.tiny_artifacts import tiny_artifact


@pytest.mark.parametrize("tied", [True, False])
def test_a_stage_gets_the_files_of_its_tensors_and_no_others(tied: bool) -> None:
    artifact = Artifact.open(tiny_artifact(tied=tied))
    records = artifact.manifest.by_name()
    for start, stop in combinations(range(artifact.manifest.num_blocks + 1), 2):
        needed = {records[name].file for name in stage_shapes(artifact.config, start, stop)}
        assert stage_files(artifact.manifest, BlockRange(start=start, stop=stop)) == needed, (start, stop)
    assert {records[name].file for name in vision_shapes(artifact.config)} == {VISION_FILE}


@pytest.mark.parametrize(
    ("files", "flags"),
    [
        (("block-00001", "block-00002"), "--blocks 1:3"),
        (("block-00001", "block-00003"), "--blocks 1:2 --blocks 3:4"),
        (("block-00000", "embed"), "--blocks 0:1"),
        (("embed", "vision"), "--vision --embeddings"),
        (("head",), "--head"),
        (("block-00005", "head"), "--blocks 5:6"),
    ],
)
def test_the_command_names_just_these_files(files: tuple[str, ...], flags: str) -> None:
    manifest = Artifact.open(tiny_artifact(tied=False)).manifest
    said = fetch_command(manifest, [f"{name}.safetensors" for name in files], Path("/srv/my model"))
    assert said == f"broker-pipeline fetch {flags} FROM '/srv/my model'"
    assert command.make_context("fetch", shlex.split(said)[2:], resilient_parsing=False).params["from"] == "FROM"


def test_a_tied_head_brings_the_embedding() -> None:
    manifest = Artifact.open(tiny_artifact(tied=True)).manifest
    last = BlockRange(start=manifest.num_blocks - 1, stop=manifest.num_blocks)
    assert {"embed.safetensors", HEAD_FILE} < stage_files(manifest, last)
    assert "--embeddings" not in fetch_command(manifest, stage_files(manifest, last), Path("x"))


def test_help_teaches() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    assert "--blocks 12:24 http" in text
    assert "goes" in text
