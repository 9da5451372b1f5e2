"""What an artifact is, for a person who decides where to put it."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from broker_pipeline.artifact_manifest import (
    EMBED_FILE,
    HEAD_FILE,
    VISION_FILE,
    WeightsManifest,
    block_file,
    read_manifest,
)
from broker_pipeline.model_facts import ModelFacts, read_model_facts
from broker_pipeline.planning.layout import Chain
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.site import weight_bytes
from broker_pipeline.tools.local.cuts import balanced_cut

# (layers, hidden size) of the family's members, spec: the configurations on the hub
_FAMILY = {
    (28, 2048): "2B",
    (36, 2560): "4B",
    (36, 4096): "8B",
    (64, 5120): "32B",
    (48, 2048): "30B-A3B",
    (94, 4096): "235B-A22B",
}


def print_inspection(directory: Path, num_stages: int) -> None:
    """Print an artifact's identity, its sizes, and cuts into `num_stages` stages of about the same size.

    Raises:
        ArtifactMissingError, ArtifactCorruptError: the directory is no whole artifact.
    """
    manifest = read_manifest(directory)
    facts = read_model_facts(directory)
    if num_stages > facts.num_layers:
        raise click.BadParameter(f"the model has {facts.num_layers} blocks", param_hint="--stages")
    sizes = {file.name: file.size_bytes for file in manifest.weight_files}
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, value in _facts(facts, manifest, sizes):
        table.add_row(label, value)
    console = Console()
    console.print(table)
    console.print(_cuts_table(ModelSizes.of(manifest, facts), balanced_cut(directory, num_stages)))


def _facts(facts: ModelFacts, manifest: WeightsManifest, sizes: dict[str, int]) -> list[tuple[str, str]]:
    blocks = [sizes[block_file(block)] for block in range(manifest.num_blocks)]
    member = _FAMILY.get((facts.num_layers, facts.hidden_size), "of no published size")
    span = decimal(min(blocks)) if min(blocks) == max(blocks) else f"{decimal(min(blocks))} to {decimal(max(blocks))}"
    fp8 = ", FP8 matrices" if manifest.is_fp8 else ""
    return [
        ("fingerprint", manifest.fingerprint),
        ("model", f"{facts.model_type}, {member}, {manifest.dtype}{fp8}"),
        ("source", _source(manifest)),
        ("blocks", f"{facts.num_layers}, {span} each"),
        ("hidden size", str(facts.hidden_size)),
        ("DeepStack", f"rows enter blocks 0 to {facts.num_deepstack_levels - 1}"),
        ("embedding", decimal(sizes[EMBED_FILE])),
        ("head", decimal(sizes[HEAD_FILE])),
        ("vision", decimal(sizes[VISION_FILE])),
        ("weights", decimal(sum(sizes.values()))),
        ("side files", ", ".join(file.name for file in manifest.side_files) or "none"),
    ]


def _source(manifest: WeightsManifest) -> str:
    if manifest.random_weights is not None:
        return f"none: random weights, drawn from seed {manifest.random_weights.seed} when they are loaded"
    return manifest.source or "a local checkpoint"


def _cuts_table(model: ModelSizes, stages: Chain) -> Table:
    title = f"{len(stages)} stages of about the same size"
    table = Table("stage", "blocks", "weights", title=title, title_justify="left")
    for number, blocks in enumerate(stages):
        table.add_row(str(number), f"{blocks.start}:{blocks.stop}", decimal(weight_bytes(model, blocks)))
    return table
