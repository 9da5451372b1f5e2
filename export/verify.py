"""Checking an artifact against its manifest, down to the last byte."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from broker_pipeline.artifact_files.contents import Advance, FileContent, contents_of, find_damage
from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PACKED_NAME,
    PACKED_RECORD_NAME,
    PackedRecord,
    WeightsManifest,
    check_weights_are_stored,
    read_manifest,
)
from broker_pipeline.errors import ArtifactCorruptError, ArtifactError
from broker_pipeline.model_facts import read_config_bytes
from broker_pipeline.tools.file_progress import ProgressReport
from export.source.name_groups import group_names
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import model_shapes, with_scales


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification went through. `absent` are weight files that were allowed to be missing."""

    fingerprint: str
    num_files: int
    size_bytes: int
    absent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Check:
    """One file to go through, and how."""

    name: str
    size_bytes: int
    run: Callable[[Advance], list[str]]


def verify_artifact(directory: Path, *, allow_missing: bool, console: Console, num_workers: int = 1) -> Verified:
    """Read every byte of an artifact and compare it with the manifest.

    `allow_missing`: weight files may be absent, as on a host that holds only its own blocks.

    Raises:
        ArtifactMissingError: the directory is no artifact.
        ArtifactCorruptError: lists everything that is wrong.
        RandomWeightsError: the artifact has no weights that could be verified.
    """
    manifest = read_manifest(directory)
    check_weights_are_stored(manifest, directory)
    absent = tuple(file.name for file in manifest.weight_files if not (directory / file.name).exists())
    checks = _checks(directory, manifest, skipped=absent if allow_missing else ())
    problems = _structure_problems(directory, manifest)
    total_bytes = sum(check.size_bytes for check in checks)
    with ProgressReport("verifying", total_bytes, len(checks), console) as report:

        def run(check: _Check) -> list[str]:
            found = check.run(report.advance)
            report.file_done(check.name, check.size_bytes, "DAMAGED" if found else "checked")
            return found

        with ThreadPoolExecutor(num_workers, thread_name_prefix="verify") as pool:
            for found in pool.map(run, checks):
                problems.extend(found)
    if problems:
        raise ArtifactCorruptError(
            f"{directory} is damaged ({len(problems)} findings); export it again, or copy it again from a good host:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return Verified(manifest.fingerprint, len(checks), total_bytes, absent)


def _checks(directory: Path, manifest: WeightsManifest, skipped: tuple[str, ...]) -> list[_Check]:
    contents = contents_of(manifest)
    checks = [_file_check(directory, content) for name, content in contents.items() if name not in skipped]
    if (directory / PACKED_NAME).exists():
        checks += _packed_check(directory, manifest)
    return checks


def _file_check(directory: Path, content: FileContent) -> _Check:
    return _Check(
        content.name, content.size_bytes, lambda advance: find_damage(directory / content.name, content, advance)
    )


def _packed_check(directory: Path, manifest: WeightsManifest) -> list[_Check]:
    path = directory / PACKED_RECORD_NAME
    try:
        record = msgspec.json.decode(path.read_bytes(), type=PackedRecord)
    except (OSError, msgspec.DecodeError) as error:
        problem = f"{PACKED_RECORD_NAME}: {error}"
        return [_Check(PACKED_RECORD_NAME, 0, lambda _: [problem])]
    if record.fingerprint != manifest.fingerprint:
        return [_Check(PACKED_NAME, 0, lambda _: [f"{PACKED_NAME}: was packed from another artifact"])]
    return [_file_check(directory, FileContent.whole(PACKED_NAME, record.size_bytes, record.sha256))]


def _structure_problems(directory: Path, manifest: WeightsManifest) -> list[str]:
    listed = {*manifest.listed_files(), MANIFEST_NAME, CONFIG_NAME, PACKED_NAME, PACKED_RECORD_NAME}
    extra = sorted(entry.name for entry in directory.iterdir() if entry.name not in listed)
    return [*_shape_problems(directory, manifest), *(f"{name}: is no part of the artifact" for name in extra)]


def _shape_problems(directory: Path, manifest: WeightsManifest) -> list[str]:
    try:
        shapes = model_shapes(ModelConfig.from_json(read_config_bytes(directory, manifest)))
    except ArtifactError as error:
        return [f"{CONFIG_NAME}: {error.message.removeprefix(f'{directory / CONFIG_NAME} ')}"]
    records = manifest.by_name()
    shapes = with_scales(shapes) if manifest.is_fp8 else shapes
    absent = [name for name in shapes if name not in records]
    wrong = [name for name, shape in shapes.items() if name in records and records[name].shape != shape]
    return [
        *(f"{MANIFEST_NAME}: lacks {line}" for line in group_names(absent)),
        *(f"{MANIFEST_NAME}: wrong shape of {line}" for line in group_names(wrong)),
    ]
