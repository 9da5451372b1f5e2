"""One export from beginning to end: plan, room, weights, side files, manifest, rename."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PACKED_NAME,
    PACKED_RECORD_NAME,
    Dtype,
    WeightsManifest,
    read_manifest,
)
from broker_pipeline.errors import DiskSpaceError, TargetExistsError
from broker_pipeline.tools.file_progress import ProgressReport
from export.fp8 import Quantisation
from export.layout import ExpertLayout
from export.packed import write_packed
from export.plan import ExportPlan, plan_export
from export.planned_artifact import PlannedArtifact, encode_manifest
from export.source.checkpoint import Checkpoint, checkpoint_version
from export.source.name_groups import group_names
from export.transfer import Hashes, Transfer, digest_plan
from export.workspace import PlanRecord, Workspace, acquire_workspace, partial_path, write_durably

# Part of what must be the same for an interrupted export to go on; raise it when recipes or file layout change.
RECIPE_VERSION = "1"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user chose. `dtype` None keeps the checkpoint's; `num_workers` files are written at once."""

    dtype: Dtype | None = None
    expert_layout: ExpertLayout = "auto"
    quantize: Quantisation | None = None
    packed: bool = False
    restart: bool = False
    num_workers: int = 1


@dataclass(frozen=True, slots=True)
class Exported:
    """The artifact that is there now. `num_kept` weight files came from an earlier, interrupted run."""

    directory: Path
    manifest: WeightsManifest
    num_kept: int
    was_there: bool


def export_checkpoint(checkpoint: Checkpoint, target: Path, options: ExportOptions, console: Console) -> Exported:
    """Turn a checkpoint into the artifact `target`, or find that `target` already is that artifact.

    Raises:
        CheckpointError, AmbiguousLayoutError, ModelConfigError: the checkpoint cannot be exported.
        TargetExistsError: `target` holds something else.
        ExportStateError: an unfinished export of something else is in the way, or one is running.
        DiskSpaceError: there is too little room.
    """
    plan = plan_export(checkpoint, dtype=options.dtype, expert_layout=options.expert_layout, quantize=options.quantize)
    artifact = PlannedArtifact.of(checkpoint, plan)
    _say_what_is_new(checkpoint, artifact, console)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        return _use_existing(checkpoint, artifact, target, options, console)
    with acquire_workspace(target) as workspace:
        record = PlanRecord(
            RECIPE_VERSION, checkpoint_version(checkpoint), plan.dtype, options.expert_layout, options.quantize
        )
        workspace.prepare(record, restart=options.restart)
        _check_room(checkpoint, plan, workspace, packed=options.packed)
        with ProgressReport("exporting", plan.size_bytes, len(plan.files), console) as report:
            transfer = Transfer(checkpoint, plan, workspace, report, num_workers=options.num_workers)
            hashes = transfer.run()
        manifest = artifact.manifest(hashes)
        for name, content in artifact.small_files().items():
            write_durably(workspace.artifact / name, content)
        _drop_strays(workspace.artifact, manifest)
        if options.packed:
            _pack(workspace.artifact, manifest, console)
        workspace.publish(encode_manifest(manifest))
    return Exported(target, manifest, transfer.num_kept, was_there=False)


def _say_what_is_new(checkpoint: Checkpoint, artifact: PlannedArtifact, console: Console) -> None:
    """Name what the artifact has and the checkpoint has not, and the other way round."""
    if made := sorted(artifact.side_files.keys() - set(checkpoint.side_files)):
        console.print(f"note: {', '.join(made)} is made from the tokenizer's older files", soft_wrap=True)
    if artifact.plan.buffers:
        names = ", ".join(group_names(artifact.plan.buffers))
        console.print(f"note: left out, since it follows from config.json: {names}", highlight=False, soft_wrap=True)


def _drop_strays(directory: Path, manifest: WeightsManifest) -> None:
    """Remove what a killed run left half written."""
    wanted = {*manifest.listed_files(), CONFIG_NAME}
    for entry in directory.iterdir():
        if entry.name not in wanted:
            entry.unlink()


def _pack(directory: Path, manifest: WeightsManifest, console: Console) -> None:
    console.print(f"packing {PACKED_NAME} …", highlight=False)
    write_packed(directory, manifest)


def _check_room(checkpoint: Checkpoint, plan: ExportPlan, workspace: Workspace, *, packed: bool) -> None:
    done_bytes = sum(entry.stat().st_size for entry in workspace.artifact.iterdir())
    needed = max(0, plan.size_bytes - done_bytes) + checkpoint.staging_bytes
    needed += plan.size_bytes if packed else 0
    free = shutil.disk_usage(workspace.artifact).free
    if free < needed:
        raise DiskSpaceError(
            f"{workspace.artifact.parent} is on a file system with {decimal(free)} free and the export needs "
            f"{decimal(needed)}; make room or choose another TARGET",
            field="target",
        )


def _use_existing(
    checkpoint: Checkpoint, artifact: PlannedArtifact, target: Path, options: ExportOptions, console: Console
) -> Exported:
    if not (target / MANIFEST_NAME).is_file():
        raise TargetExistsError(f"{target} exists and is not an artifact; choose another TARGET", field="target")
    existing = read_manifest(target)
    if not _is_same(checkpoint, artifact, existing, console):
        raise TargetExistsError(
            f"{target} holds another artifact (fingerprint {existing.fingerprint[:16]}…); choose another TARGET or "
            "remove it first",
            field="target",
        )
    shutil.rmtree(partial_path(target), ignore_errors=True)  # left if a run was killed right after its rename
    if options.packed and not (target / PACKED_RECORD_NAME).is_file():
        _pack(target, existing, console)
    return Exported(target, existing, 0, was_there=True)


def _is_same(checkpoint: Checkpoint, artifact: PlannedArtifact, existing: WeightsManifest, console: Console) -> bool:
    """Whether exporting would give the artifact that is there: read the whole checkpoint, but write nothing."""
    plan = artifact.plan
    if existing.config_sha256 != hashlib.sha256(artifact.config_json).hexdigest() or existing.dtype != plan.dtype:
        return False
    planned = [(tensor.name, tensor.dtype) for file in plan.files for tensor in file.tensors]
    if planned != [(record.name, record.dtype) for record in existing.tensors if record.tied_to is None]:
        return False
    if checkpoint.source is not None:  # a commit of the hub never changes: no need to fetch it again
        return existing.source == checkpoint.source
    hashes: Hashes = {}
    with ProgressReport("comparing", plan.size_bytes, len(plan.files), console) as report:
        for name, found in digest_plan(checkpoint, plan, Path(), report):
            if found != tuple(record.sha256 for record in existing.stored_in(name)):
                return False
            hashes[name] = found
    return artifact.manifest(hashes).fingerprint == existing.fingerprint
