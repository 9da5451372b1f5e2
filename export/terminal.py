"""The export commands as a person at a terminal sees them: what is done, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import click
import torch
from rich.console import Console
from rich.filesize import decimal

from broker_pipeline.artifact_manifest import MANIFEST_NAME, check_weights_are_stored, read_manifest
from broker_pipeline.exit_codes import INTERRUPTED
from export.exporter import Exported, ExportOptions, export_checkpoint
from export.source.checkpoint import Checkpoint, LocalCheckpoint
from export.source.hub import HubCheckpoint
from export.source.revisions import parse_reference
from export.verify import verify_artifact
from export.workspace import partial_path


def export_source(source: str, target: Path, options: ExportOptions) -> None:
    """Export SOURCE to TARGET, saying what is done; Ctrl-C leaves what the same command goes on from."""
    torch.set_num_threads(1)  # the workers are the parallelism
    console = Console(stderr=True)
    opened = open_source(source)
    try:
        exported = export_checkpoint(opened, target, options, console)
    except KeyboardInterrupt:
        console.print(
            f"stopped; {partial_path(target)} holds what is done, the same command goes on from there", soft_wrap=True
        )
        raise SystemExit(INTERRUPTED) from None
    _print_result(exported)


def verify_directory(directory: Path, *, allow_missing: bool, num_workers: int) -> None:
    """Verify an artifact and say that it is whole; whatever is wrong is an `ArtifactError`."""
    result = verify_artifact(
        directory, allow_missing=allow_missing, console=Console(stderr=True), num_workers=num_workers
    )
    click.echo(f"{directory} is whole: {result.num_files} files, {decimal(result.size_bytes)}")
    if result.absent:
        click.echo(f"absent: {', '.join(result.absent)}")
    click.echo(f"fingerprint {result.fingerprint}")


def open_source(source: str) -> Checkpoint:
    """Open a local directory or, failing that, a repository of the hub."""
    directory = Path(source)
    if directory.is_dir():
        if (directory / MANIFEST_NAME).is_file():
            check_weights_are_stored(read_manifest(directory), directory)
        return LocalCheckpoint(directory)
    return HubCheckpoint(parse_reference(source))


def _print_result(exported: Exported) -> None:
    if exported.was_there:
        click.echo(f"{exported.directory} already is this artifact")
    else:
        kept = f" ({exported.num_kept} files kept from an earlier run)" if exported.num_kept else ""
        size_bytes = sum(file.size_bytes for file in exported.manifest.weight_files)
        click.echo(f"{exported.directory}: {decimal(size_bytes)} in {exported.manifest.num_blocks} blocks{kept}")
    click.echo(f"fingerprint {exported.manifest.fingerprint}")
