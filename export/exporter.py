"""One export from beginning to end: plan, room, weights, side files, manifest, rename."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.filesize import decimal

from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    PACKED_NAME,
    PACKED_RECORD_NAME,
    Dtype,
    SideFile,
    TensorRecord,
    WeightFile,
    WeightsManifest,
    fingerprint_of,
    read_manifest,
)
from broker_pipeline.errors import DiskSpaceError, TargetExistsError
from export.layout import ExpertLayout
from export.packed import write_packed
from export.plan import ExportPlan, PlannedFile, plan_export
from export.progress import ProgressReport
from export.source.checkpoint import Checkpoint, checkpoint_version
from export.transfer import Hashes, Transfer, digest_plan
from export.workspace import PlanRecord, Workspace, acquire_workspace, partial_path, write_durably
from stages.qwen3_vl.tensors import EMBED_TOKENS, LM_HEAD

# Part of what must be the same for an interrupted export to go on; raise it when recipes or file layout change.
RECIPE_VERSION = "1"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user chose. `dtype` None keeps the checkpoint's; `num_workers` files are written at once."""

    dtype: Dtype | None = None
    expert_layout: ExpertLayout = "auto"
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
    plan = plan_export(checkpoint, dtype=options.dtype, expert_layout=options.expert_layout)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        return _use_existing(checkpoint, plan, target, options, console)
    with acquire_workspace(target) as workspace:
        record = PlanRecord(RECIPE_VERSION, checkpoint_version(checkpoint), plan.dtype, options.expert_layout)
        workspace.prepare(record, restart=options.restart)
        _check_room(checkpoint, plan, workspace, packed=options.packed)
        with ProgressReport("exporting", plan.size_bytes, len(plan.files), console) as report:
            transfer = Transfer(checkpoint, plan, workspace, report, num_workers=options.num_workers)
            hashes = transfer.run()
        manifest = build_manifest(checkpoint, plan, hashes)
        _write_small_files(checkpoint, workspace.artifact, manifest)
        _drop_strays(workspace.artifact, manifest)
        if options.packed:
            _pack(workspace.artifact, manifest, console)
        workspace.publish(encode_manifest(manifest))
    return Exported(target, manifest, transfer.num_kept, was_there=False)


def build_manifest(checkpoint: Checkpoint, plan: ExportPlan, hashes: Mapping[str, tuple[str, ...]]) -> WeightsManifest:
    """Return the manifest of a plan whose tensors have these hashes (by file, in order)."""
    tensors = [record for file in plan.files for record in _records(file, hashes[file.name])]
    if plan.has_tied_head:
        embedding = next(record for record in tensors if record.name == EMBED_TOKENS)
        tensors.append(msgspec.structs.replace(embedding, name=LM_HEAD, tied_to=EMBED_TOKENS))
    manifest = WeightsManifest(
        format_version=FORMAT_VERSION,
        fingerprint="0" * 64,
        config_sha256=hashlib.sha256(checkpoint.config_json).hexdigest(),
        dtype=plan.dtype,
        num_blocks=plan.num_blocks,
        source=checkpoint.source,
        weight_files=tuple(WeightFile(file.name, file.size_bytes) for file in plan.files),
        side_files=tuple(_side_file(checkpoint, name) for name in checkpoint.side_files),
        tensors=tuple(tensors),
    )
    return msgspec.structs.replace(manifest, fingerprint=fingerprint_of(manifest))


def encode_manifest(manifest: WeightsManifest) -> bytes:
    """Return the manifest as it is written: JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _records(file: PlannedFile, hashes: tuple[str, ...]) -> list[TensorRecord]:
    return [
        TensorRecord(
            name=tensor.name,
            file=file.name,
            dtype=file.dtype,
            shape=tensor.shape,
            size_bytes=stored.size_bytes,
            sha256=sha256,
            tied_to=None,
            source_files=tensor.source_files,
            source_layout=tensor.layout,
            transposed=tensor.transposed,
        )
        for tensor, stored, sha256 in zip(file.tensors, file.stored, hashes, strict=True)
    ]


def _side_file(checkpoint: Checkpoint, name: str) -> SideFile:
    content = checkpoint.read_side_file(name)
    return SideFile(name, len(content), hashlib.sha256(content).hexdigest())


def _write_small_files(checkpoint: Checkpoint, directory: Path, manifest: WeightsManifest) -> None:
    write_durably(directory / CONFIG_NAME, checkpoint.config_json)
    for file in manifest.side_files:
        write_durably(directory / file.name, checkpoint.read_side_file(file.name))


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
    checkpoint: Checkpoint, plan: ExportPlan, target: Path, options: ExportOptions, console: Console
) -> Exported:
    if not (target / MANIFEST_NAME).is_file():
        raise TargetExistsError(f"{target} exists and is not an artifact; choose another TARGET", field="target")
    existing = read_manifest(target)
    if not _is_same(checkpoint, plan, existing, console):
        raise TargetExistsError(
            f"{target} holds another artifact (fingerprint {existing.fingerprint[:16]}…); choose another TARGET or "
            "remove it first",
            field="target",
        )
    shutil.rmtree(partial_path(target), ignore_errors=True)  # left if a run was killed right after its rename
    if options.packed and not (target / PACKED_RECORD_NAME).is_file():
        _pack(target, existing, console)
    return Exported(target, existing, 0, was_there=True)


def _is_same(checkpoint: Checkpoint, plan: ExportPlan, existing: WeightsManifest, console: Console) -> bool:
    """Whether exporting would give the artifact that is there: read the whole checkpoint, but write nothing."""
    if existing.config_sha256 != hashlib.sha256(checkpoint.config_json).hexdigest() or existing.dtype != plan.dtype:
        return False
    if checkpoint.source is not None:  # a commit of the hub never changes: no need to fetch it again
        return existing.source == checkpoint.source
    hashes: Hashes = {}
    with ProgressReport("comparing", plan.size_bytes, len(plan.files), console) as report:
        for name, found in digest_plan(checkpoint, plan, Path(), report):
            if found != tuple(record.sha256 for record in existing.stored_in(name)):
                return False
            hashes[name] = found
    return build_manifest(checkpoint, plan, hashes).fingerprint == existing.fingerprint
