"""Exports that are killed, run again, or get in each other's way. Real processes, real SIGKILL."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from broker_pipeline.artifact_manifest import MANIFEST_NAME
from broker_pipeline.errors import (
    CheckpointError,
    DiskSpaceError,
    ExportStateError,
    TargetExistsError,
)
from export import exporter
from export.safetensors_file import disk_error
from export.verify import verify_artifact
from export.workspace import acquire_workspace, partial_path
from tests.kit.models.random_checkpoints import write_random_checkpoint
from tests.kit.running.small_disk import needs_mounting, small_disk

NUM_LAYERS = 120


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Many small blocks, so that there are many moments to be killed in."""
    directory = tmp_path_factory.mktemp("many-blocks") / "source"
    return write_random_checkpoint(directory, num_layers=NUM_LAYERS, dtype=torch.bfloat16)


def start(source: Path, target: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "broker_pipeline", "export", str(source), str(target), "--workers", "2", *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def kill_after(process: subprocess.Popen[str], num_files: int) -> None:
    with process:
        for line in process.stderr:
            if line.startswith(f"{num_files}/"):
                break
        process.kill()
    assert process.returncode == -9, "the export was over before it could be killed"


def verify(directory: Path) -> str:
    return verify_artifact(directory, allow_missing=False, console=Console(quiet=True)).fingerprint


def test_a_killed_export_goes_on_where_it_was(tmp_path, source, run_export):
    whole = run_export(source, tmp_path / "whole")
    target = tmp_path / "target"
    kill_after(start(source, target), 40)
    assert not target.exists()
    assert not (partial_path(target) / "artifact" / MANIFEST_NAME).exists()
    (partial_path(target) / "artifact" / "block-00099.safetensors.writing").write_bytes(b"half")
    resumed = run_export(source, target)
    assert 39 <= resumed.num_kept < NUM_LAYERS
    assert resumed.manifest == whole.manifest
    assert verify(target) == whole.manifest.fingerprint
    assert not partial_path(target).exists()


def test_a_finished_file_that_was_damaged_is_written_again(tmp_path, source, run_export):
    target = tmp_path / "target"
    kill_after(start(source, target), 40)
    finished = sorted((partial_path(target) / "artifact").glob("block-*.safetensors"))
    content = bytearray(finished[3].read_bytes())
    content[-1] ^= 1
    finished[3].write_bytes(content)
    finished[4].unlink()
    run_export(source, target)
    verify(target)


@pytest.mark.slow
def test_killed_at_any_moment_the_target_is_whole_or_absent(tmp_path, source):
    moments = random.Random(4)
    target = tmp_path / "target"
    num_killed = 0
    for _ in range(4):
        process = start(source, target, "--packed")
        kill_after(process, moments.randrange(1, 123))
        num_killed += 1
        assert not target.exists()
    assert num_killed == 4
    for delay_s in (0.0, 0.01, 0.03, 0.1):  # around packing and the final rename
        process = start(source, target, "--packed")
        with process:
            for line in process.stderr:
                if line.startswith("packing"):
                    break
            try:
                process.wait(delay_s)
            except subprocess.TimeoutExpired:
                process.kill()
        if target.exists():
            verify(target)
    process = start(source, target, "--packed")
    assert process.wait(60) == 0
    process.stderr.close()
    verify(target)
    assert not partial_path(target).exists()


def test_an_unfinished_export_of_something_else_is_not_continued(tmp_path, source, run_export):
    target = tmp_path / "target"
    kill_after(start(source, target), 10)
    with pytest.raises(ExportStateError, match="--restart"):
        run_export(source, target, dtype="float32")
    assert list((partial_path(target) / "artifact").glob("block-*"))
    restarted = run_export(source, target, dtype="float32", restart=True)
    assert restarted.num_kept == 0
    assert verify(target) == restarted.manifest.fingerprint


def test_a_source_that_changed_meanwhile_is_not_continued(tmp_path, source, run_export):
    changing = tmp_path / "changing"
    shutil.copytree(source, changing)
    target = tmp_path / "target"
    kill_after(start(changing, target), 10)
    (changing / "model.safetensors").touch()
    with pytest.raises(ExportStateError):
        run_export(changing, target)


def test_a_second_export_of_the_same_target_is_refused(tmp_path, source, run_export):
    target = tmp_path / "target"
    with acquire_workspace(target), pytest.raises(ExportStateError, match="right now"):
        run_export(source, target)
    assert not target.exists()


def test_a_shard_that_is_replaced_while_it_is_read_is_noticed(tmp_path, run_export, monkeypatch):
    source = write_random_checkpoint(tmp_path / "source", num_layers=3)
    other = write_random_checkpoint(tmp_path / "other", num_layers=3, dtype=torch.bfloat16)
    plan_export = exporter.plan_export

    def plan_then_replace(*arguments, **options):
        plan = plan_export(*arguments, **options)
        shutil.copy(other / "model.safetensors", source / "model.safetensors")
        return plan

    monkeypatch.setattr(exporter, "plan_export", plan_then_replace)
    with pytest.raises(CheckpointError, match="changed while it was exported"):
        run_export(source)


class TestExistingTarget:
    def test_the_same_artifact_is_left_alone(self, tmp_path, run_export):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        first = run_export(source)
        before = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
        second = run_export(source)
        assert second.was_there
        assert second.manifest == first.manifest
        assert before == {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}

    def test_other_weights_of_the_same_shape_are_refused(self, tmp_path, run_export):
        first = run_export(write_random_checkpoint(tmp_path / "a", num_layers=3, seed=1), tmp_path / "target")
        before = verify(first.directory)
        with pytest.raises(TargetExistsError, match="holds another artifact"):
            run_export(write_random_checkpoint(tmp_path / "b", num_layers=3, seed=2), tmp_path / "target")
        assert verify(first.directory) == before

    def test_other_side_files_are_refused(self, tmp_path, run_export):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        run_export(source)
        settings = source / "generation_config.json"
        settings.write_text(settings.read_text().replace("0.7", "0.8"))
        with pytest.raises(TargetExistsError):
            run_export(source)

    @pytest.mark.parametrize("kind", ["directory", "file"])
    def test_anything_else_is_refused(self, tmp_path, run_export, kind):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        target = tmp_path / "target"
        thesis = target
        if kind == "directory":
            target.mkdir()
            thesis = target / "thesis.txt"
        thesis.write_text("years of work")
        with pytest.raises(TargetExistsError, match="is not an artifact"):
            run_export(source, target)
        assert thesis.read_text() == "years of work"
        assert not partial_path(target).exists()

    def test_an_empty_directory_is_used(self, tmp_path, run_export):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        (tmp_path / "target").mkdir()
        verify(run_export(source, tmp_path / "target").directory)


class TestRoom:
    def test_too_little_room_is_said_before_anything_is_written(self, tmp_path, run_export, monkeypatch):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
        with pytest.raises(DiskSpaceError, match=r"2\.0 MB free and the export needs 2\.2 MB"):
            run_export(source, tmp_path / "target")
        assert not list((partial_path(tmp_path / "target") / "artifact").iterdir())

    def test_packing_needs_room_of_its_own(self, tmp_path, run_export, monkeypatch):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))
        run_export(source, tmp_path / "plain")
        with pytest.raises(DiskSpaceError):
            run_export(source, tmp_path / "target", packed=True)

    @needs_mounting
    def test_a_disk_that_runs_full_while_packing_is_said_as_any_other(self, tmp_path, run_export, monkeypatch):
        source = write_random_checkpoint(tmp_path / "source", num_layers=3)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
        with small_disk(tmp_path / "disk", "3m"):
            with pytest.raises(DiskSpaceError, match=r"the disk ran full while writing \S+weights\.pt; make room and"):
                run_export(source, tmp_path / "disk" / "target", packed=True)
            left = partial_path(tmp_path / "disk" / "target") / "artifact"
            assert not list(left.glob("weights.pt*"))

    def test_a_disk_that_runs_full_says_how_to_go_on(self):
        error = disk_error(OSError(errno.ENOSPC, "No space left on device"), Path("/x/block-00001.safetensors"))
        assert isinstance(error, DiskSpaceError)
        assert "run the same command again" in error.message
