"""`broker-pipeline export`: make artifacts, check them, look at them."""

import os
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.filesize import decimal

from broker_pipeline.artifact_manifest import Dtype
from export.checkpoint import Checkpoint, LocalCheckpoint
from export.exporter import Exported, ExportOptions, export_checkpoint
from export.hub import HubCheckpoint
from export.inspection import print_inspection
from export.layout import ExpertLayout
from export.revisions import parse_reference
from export.verify import verify_artifact
from export.workspace import partial_path

DEFAULT_NUM_WORKERS = min(4, os.cpu_count() or 1)
_TOKENIZER = "tokenizer.json"


class ExportGroup(click.Group):
    """A group whose first word is a source unless it is the name of a subcommand.

    `export SOURCE TARGET` is what people type a hundred times as often as `export verify DIR`. A directory that is
    called like a subcommand is written `./verify`.
    """

    DEFAULT = "checkpoint"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default subcommand before arguments that do not name one."""
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self.DEFAULT, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the default subcommand's usage as the group's own, and the others below it."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] SOURCE TARGET")
        for name in self.list_commands(ctx):
            if name != self.DEFAULT:
                formatter.write_usage(f"{ctx.command_path} {name}", "[OPTIONS] DIRECTORY", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the default subcommand's options as the group's own."""
        self.commands[self.DEFAULT].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


_workers_option = click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(1, 64),
    default=DEFAULT_NUM_WORKERS,
    show_default=True,
    help="Files that are worked on at once; each takes up to about 200 MB of memory.",
)


@click.group(cls=ExportGroup)
def command() -> None:
    """Turn a Hugging Face checkpoint of Qwen3-VL into an artifact that any cut of the model can load.

    \b
    SOURCE  a directory with config.json and safetensors files, or a hub repository: owner/name[@revision].
            The family's repositories have pinned revisions; others need one.
    TARGET  the directory to make. Until everything is written it is called TARGET.partial; when an export is
            interrupted, the same command goes on where it stopped.

    \b
    broker-pipeline export ./Qwen3-VL-8B-Instruct ./artifacts/8b
    broker-pipeline export Qwen/Qwen3-VL-235B-A22B-Thinking ./artifacts/235b
    broker-pipeline export verify ./artifacts/8b
    broker-pipeline export inspect ./artifacts/8b --stages 3
    """


@command.command(ExportGroup.DEFAULT, hidden=True)
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    help="Convert the weights. Default: keep the checkpoint's dtype; FP8 becomes bfloat16.",
)
@click.option(
    "--expert-layout",
    type=click.Choice(["auto", "hub", "runtime"]),
    default="auto",
    show_default=True,
    help="How fused experts are stored: [E, in, out] as on the hub, or [E, out, in] as transformers 5 saves them.",
)
@click.option("--packed", is_flag=True, help="Also write weights.pt, one state dict for torch.load.")
@click.option("--restart", is_flag=True, help="Drop an unfinished export of this TARGET instead of going on with it.")
@_workers_option
def checkpoint(
    source: str,
    target: Path,
    dtype: Dtype | None,
    expert_layout: ExpertLayout,
    packed: bool,
    restart: bool,
    num_workers: int,
) -> None:
    """Export SOURCE to TARGET."""
    torch.set_num_threads(1)  # the workers are the parallelism
    console = Console(stderr=True)
    options = ExportOptions(dtype, expert_layout, packed, restart, num_workers)
    target = target.absolute()
    opened = open_source(source)
    if _TOKENIZER not in opened.side_files:
        console.print(
            f"note: {source} has no {_TOKENIZER}; a vision worker cannot serve without one",
            highlight=False,
            soft_wrap=True,
        )
    try:
        exported = export_checkpoint(opened, target, options, console)
    except KeyboardInterrupt:
        console.print(
            f"stopped; {partial_path(target)} holds what is done, the same command goes on from there", soft_wrap=True
        )
        raise
    _print_result(exported)


@command.command("verify")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--allow-missing", is_flag=True, help="Accept absent weight files, as on a host with some of the blocks.")
@_workers_option
def verify(directory: Path, allow_missing: bool, num_workers: int) -> None:
    """Read every byte of an artifact and compare it with its manifest."""
    result = verify_artifact(
        directory, allow_missing=allow_missing, console=Console(stderr=True), num_workers=num_workers
    )
    click.echo(f"{directory} is whole: {result.num_files} files, {decimal(result.size_bytes)}")
    if result.absent:
        click.echo(f"absent: {', '.join(result.absent)}")
    click.echo(f"fingerprint {result.fingerprint}")


@command.command("inspect")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--stages", "num_stages", type=click.IntRange(1), default=2, show_default=True, help="Stages to cut into."
)
def inspect(directory: Path, num_stages: int) -> None:
    """Show what an artifact is, and where to cut it."""
    print_inspection(directory, num_stages, Console())


def open_source(source: str) -> Checkpoint:
    """Open a local directory or, failing that, a repository of the hub."""
    if Path(source).is_dir():
        return LocalCheckpoint(Path(source))
    return HubCheckpoint(parse_reference(source))


def _print_result(exported: Exported) -> None:
    if exported.was_there:
        click.echo(f"{exported.directory} already is this artifact")
    else:
        kept = f" ({exported.num_kept} files kept from an earlier run)" if exported.num_kept else ""
        size_bytes = sum(file.size_bytes for file in exported.manifest.weight_files)
        click.echo(f"{exported.directory}: {decimal(size_bytes)} in {exported.manifest.num_blocks} blocks{kept}")
    click.echo(f"fingerprint {exported.manifest.fingerprint}")
