"""`export verify --parity` as a person at a terminal sees it: progress, a table, a receipt."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from rich.filesize import decimal

from broker_pipeline.artifact_manifest import CONFIG_NAME, check_weights_are_stored
from broker_pipeline.errors import CheckpointError, ConfigurationError
from broker_pipeline.exit_codes import INTERRUPTED, SOME_FAILED
from broker_pipeline.process.terminal import make_console, plain_table
from broker_pipeline.tools.machine import MachineFacts
from export.parity.comparison import Comparison
from export.parity.part import Part, worst_by_kind
from export.parity.progress import Progress
from export.parity.receipt import Greedy, Model, Receipt, read_versions
from export.source.checkpoint import LocalCheckpoint, checkpoint_version
from export.workspace import write_durably
from stages.artifact import Artifact
from stages.device.hardware import free_bytes

_SPARE_BYTES = 2 << 30
"""For activations while tokens are generated, and for what else runs here."""


def compare_directories(directory: Path, checkpoint: Path, path: Path | None, num_tokens: int) -> None:
    """Compare an artifact with its checkpoint, say what was found, and write the receipt to `path`.

    Exits with 1 when anything but rounding is different, with 130 at Ctrl-C, which leaves what the same command goes on
    from.

    Raises:
        CheckpointError: it is not the artifact's checkpoint.
        ArtifactError: one of the two cannot be read.
        ConfigurationError: the receipt cannot be written there.
    """
    artifact, source = Artifact.open(directory), LocalCheckpoint(checkpoint)
    _check_is_source(artifact, source, checkpoint)
    path = path or directory.absolute().with_name(f"{directory.absolute().name}.parity.json")
    _check_receipt(path, directory)
    key = msgspec.json.encode([artifact.fingerprint, checkpoint_version(source), read_versions()]).decode()
    progress = Progress(path.with_name(f"{path.name}.unfinished"), key)
    errors = make_console(stderr=True)
    try:
        receipt = _compare(Comparison(artifact, source, checkpoint, progress), artifact, progress, num_tokens, errors)
    except KeyboardInterrupt:
        line = f"stopped; {progress.path} holds what is done, the same command goes on from there"
        errors.print(line, soft_wrap=True)
        raise SystemExit(INTERRUPTED) from None
    write_durably(path, msgspec.json.format(msgspec.json.encode(receipt), indent=1) + b"\n")
    progress.path.unlink(missing_ok=True)
    _print(receipt, path, make_console())
    if not receipt.is_within:
        raise SystemExit(SOME_FAILED)


def _check_receipt(path: Path, artifact: Path) -> None:
    """Refuse a place that a receipt would spoil, or cannot be written to, before hours are spent on it."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigurationError(f"{path} is not a regular file; name another one", field="receipt")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"there is no directory {path.absolute().parent}", field="receipt")
    if path.resolve().is_relative_to(artifact.resolve()):
        raise ConfigurationError(f"{path} lies in the artifact, which holds what was exported only", field="receipt")


def _check_is_source(artifact: Artifact, source: LocalCheckpoint, checkpoint: Path) -> None:
    check_weights_are_stored(artifact.manifest, artifact.directory)
    if hashlib.sha256(source.config_json).hexdigest() != artifact.manifest.config_sha256:
        raise CheckpointError(
            f"{checkpoint} is not the checkpoint that {artifact.directory} was exported from: its config.json is "
            "another one. If you have edited it since, export again.",
            field="parity",
        )


def _compare(
    comparison: Comparison, artifact: Artifact, progress: Progress, num_tokens: int, errors: Console
) -> Receipt:
    machine = MachineFacts.read()
    comparison.run(errors)
    parts, started = tuple(progress.parts), time.monotonic()
    left_out = _why_not(artifact, parts, num_tokens)
    greedy = () if left_out else tuple(comparison.generate(num_tokens))
    beyond = [part.name for part in parts if not part.is_within]
    return Receipt(
        is_within=not beyond and all(each.is_within for each in greedy),
        first_beyond=beyond[0] if beyond else None,
        model=_model_facts(artifact),
        num_prompt_tokens=sum(len(scene.prompt.token_ids) for scene in comparison.scenes),
        num_patches=sum(grid.num_patches for scene in comparison.scenes for grid in scene.grids),
        greedy=greedy,
        greedy_left_out=left_out,
        seconds=round(sum(part.seconds for part in parts) + time.monotonic() - started, 1),
        peak_memory_bytes=progress.peak_memory_bytes,
        versions=read_versions(),
        machine=machine,
        worst=worst_by_kind(parts),
        parts=parts,
    )


def _model_facts(artifact: Artifact) -> Model:
    manifest = artifact.manifest
    return Model(
        fingerprint=artifact.fingerprint,
        dtype=manifest.dtype,
        num_layers=manifest.num_blocks,
        num_experts=artifact.config.text.num_experts,
        weights_bytes=sum(file.size_bytes for file in manifest.weight_files),
        hashes={CONFIG_NAME: manifest.config_sha256, **{file.name: file.sha256 for file in manifest.side_files}},
    )


def _why_not(artifact: Artifact, parts: Sequence[Part], num_tokens: int) -> str | None:
    """Return why no tokens are generated, or None. Both sides share the artifact's tensors, which must be right."""
    need, free = _model_facts(artifact).weights_bytes + _SPARE_BYTES, free_bytes(torch.device("cpu"))
    if not num_tokens:
        return "none were asked for"
    if not all(part.is_within for part in parts):
        return "parts are different"
    if need > free:
        return f"the model needs {decimal(need)} of memory, and {decimal(free)} are free"
    return None


def _print(receipt: Receipt, path: Path, console: Console) -> None:
    numbers = ("parts", "largest difference", "relative", "in float32")
    table = plain_table("part", *numbers, "in", "result", right=numbers)
    counts = Counter(part.kind for part in receipt.parts)
    for kind, part in receipt.worst.items():
        figures = part.difference.absolute, part.difference.relative, part.in_float32.relative
        worst = part.name if part.name != kind and part.difference.absolute else ""
        table.add_row(kind, str(counts[kind]), *(f"{value:.2g}" for value in figures), worst, _result(part))
    console.print(table)
    lines = [f"{part.name}: {line}" for part in receipt.parts for line in part.findings]
    lines += [_tokens(each) for each in receipt.greedy]
    if receipt.greedy_left_out:
        lines.append(f"greedy tokens: left out, {receipt.greedy_left_out}")
    beyond = f"DIFFERENT, first in {receipt.first_beyond or 'greedy tokens'}"
    verdict = "equal within rounding" if receipt.is_within else beyond
    lines.append(f"{verdict}; {receipt.seconds:.0f} s, {decimal(receipt.peak_memory_bytes)} at most; receipt {path}")
    for line in lines:
        console.print(line, soft_wrap=True)


def _result(part: Part) -> str:
    if not part.is_within:
        return "DIFFERENT"
    return "rounding" if part.difference.absolute else "the same"


def _tokens(greedy: Greedy) -> str:
    tie = ", then a tie" if greedy.is_tie else ""
    return f"greedy tokens, {greedy.scene}: {greedy.num_equal} of {greedy.num_tokens} equal{tie}"
