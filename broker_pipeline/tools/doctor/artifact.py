"""Whether the artifact's files that this host needs are here, and whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from broker_pipeline.artifact_files.block_range import parse_block_range
from broker_pipeline.artifact_files.contents import contents_of, find_damage, size_problem
from broker_pipeline.artifact_files.selection import fetch_command, stage_files
from broker_pipeline.artifact_manifest import VISION_FILE, read_manifest
from broker_pipeline.model_facts import check_side_files, read_config_bytes
from broker_pipeline.tools.doctor.finding import Finding, fail, ok


@dataclass(frozen=True, slots=True)
class ArtifactFacts:
    """What is in the directory."""

    directory: Path
    fingerprint: str
    num_bytes: int
    """Of weight files that are here."""
    num_files: int
    missing: tuple[str, ...]
    fetch: str
    """The command that brings what is missing."""
    damage: tuple[str, ...]
    is_hashed: bool


def look_at_artifact(directory: Path, blocks: Sequence[str], *, vision: bool, is_full: bool) -> ArtifactFacts:
    """Read manifest and small files, and the sizes of weight files, or every byte of them.

    Raises what `read_manifest`, `check_side_files` and `parse_block_range` raise.
    """
    manifest = read_manifest(directory)
    read_config_bytes(directory, manifest)
    check_side_files(directory, manifest)
    needed = {VISION_FILE} if vision else set[str]()
    needed = needed.union(*(stage_files(manifest, parse_block_range(text, manifest.num_blocks)) for text in blocks))
    sides = {file.name for file in manifest.side_files}
    weights = {name: content for name, content in contents_of(manifest).items() if name not in sides}
    here = {name: content for name, content in weights.items() if (directory / name).is_file()}
    missing = sorted((needed & weights.keys()) - here.keys())
    damage: list[str] = []
    for name, content in here.items():
        problem = size_problem(directory / name, content.size_bytes)
        damage += find_damage(directory / name, content, lambda _: None) if is_full else [problem] if problem else []
    return ArtifactFacts(
        directory=directory,
        fingerprint=manifest.fingerprint,
        num_bytes=sum(content.size_bytes for content in here.values()),
        num_files=len(here),
        missing=tuple(missing),
        fetch=fetch_command(manifest, missing, directory) if missing else "",
        damage=tuple(damage),
        is_hashed=is_full,
    )


def judge_artifact(facts: ArtifactFacts) -> list[Finding]:
    """Say what is missing or damaged."""
    found = []
    if facts.missing:
        found.append(fail("artifact", f"{facts.directory} lacks {', '.join(facts.missing)}", f"`{facts.fetch}`"))
    if facts.damage:
        remedy = "remove these files and fetch them again"
        found.append(fail("artifact", f"{facts.directory}: {'; '.join(facts.damage)}", remedy))
    how = "every byte hashed" if facts.is_hashed else "sizes and small files; --full hashes weights"
    size = f"{facts.num_files} weight files, {decimal(facts.num_bytes)}"
    return found or [ok("artifact", f"{facts.directory}: {size} ({how})")]
