"""`broker-pipeline export`: make artifacts, check them, look at them.

What the commands do is imported when one runs: `--help`, and a machine without torch, must not need it.
"""

import os
from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from broker_pipeline.artifact_manifest import Dtype
from broker_pipeline.config import PathType

DEFAULT_NUM_WORKERS = min(4, os.cpu_count() or 1)


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
    help="Files read and written in parallel; each takes up to about 200 MB of memory.",
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
    broker-pipeline export --quantize fp8 ./Qwen3-VL-8B-Instruct ./artifacts/8b-fp8
    broker-pipeline export verify ./artifacts/8b
    broker-pipeline export inspect ./artifacts/8b --stages 3
    """


@command.command(ExportGroup.DEFAULT, hidden=True)
@click.argument("source", type=PathType())
@click.argument("target", type=PathType(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    help="Convert the weights. Default: keep the checkpoint's dtype; FP8 becomes bfloat16, unless --quantize keeps it; "
    "float16 needs one of these.",
)
@click.option(
    "--expert-layout",
    type=click.Choice(["auto", "hub", "runtime"]),
    default="auto",
    show_default=True,
    help="How fused experts are stored: [E, in, out] as on the hub, or [E, out, in] as transformers 5 saves them.",
)
@click.option(
    "--quantize",
    type=click.Choice(["fp8"]),
    help="Store the decoder's matrices in FP8: e4m3 codes, a scale for each 128 x 128. Half the bytes. An FP8 "
    "checkpoint's own codes and scales are kept.",
)
@click.option("--packed", is_flag=True, help="Also write weights.pt, one state dict for torch.load.")
@click.option("--restart", is_flag=True, help="Drop an unfinished export of this TARGET instead of going on with it.")
@_workers_option
def checkpoint(
    source: str,
    target: Path,
    dtype: Dtype | None,
    expert_layout: Literal["auto", "hub", "runtime"],
    quantize: Literal["fp8"] | None,
    packed: bool,
    restart: bool,
    num_workers: int,
) -> None:
    """Export SOURCE to TARGET."""
    from export.exporter import ExportOptions  # noqa: PLC0415
    from export.terminal import export_source  # noqa: PLC0415

    export_source(source, target.resolve(), ExportOptions(dtype, expert_layout, quantize, packed, restart, num_workers))


@command.command("verify")
@click.argument("directory", type=PathType(path_type=Path))
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Accept absent weight files, as on a host that holds only the blocks of its stages.",
)
@_workers_option
@click.option(
    "--parity",
    metavar="CHECKPOINT",
    type=PathType(path_type=Path, exists=True, file_okay=False),
    help="Compare with transformers on this checkpoint, from which the artifact was exported, part by part.",
)
@click.option(
    "--receipt", type=PathType(path_type=Path), help="With --parity: the receipt. Default: ARTIFACT.parity.json."
)
@click.option(
    "--tokens",
    "num_tokens",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="With --parity: greedy tokens of each prompt, where the whole model fits into memory.",
)
def verify(
    directory: Path,
    allow_missing: bool,
    num_workers: int,
    parity: Path | None,
    receipt: Path | None,
    num_tokens: int,
) -> None:
    """Read every byte of an artifact and compare it with its manifest.

    With --parity, compare every tensor with the checkpoint's instead, bit by bit, and what every part of the model
    computes with what transformers does. A part is in memory at a time. Ctrl-C leaves RECEIPT.unfinished, from which
    the same command goes on.

    \b
    Exit codes: 0 whole, or equal but for rounding; 1 more than rounding is different; 2 wrong usage;
    78 the artifact is damaged; 130 interrupted.

    \b
    broker-pipeline export verify ./artifacts/8b
    broker-pipeline export verify ./artifacts/8b --parity ./Qwen3-VL-8B-Instruct
    """
    context = click.get_current_context()
    if parity is None:
        from export.terminal import verify_directory  # noqa: PLC0415

        if receipt or context.get_parameter_source("num_tokens") != ParameterSource.DEFAULT:
            raise click.UsageError("--receipt and --tokens are for --parity CHECKPOINT")
        verify_directory(directory, allow_missing=allow_missing, num_workers=num_workers)
        return
    from export.parity.terminal import compare_directories  # noqa: PLC0415

    compare_directories(directory, parity, receipt, num_tokens)


@command.command("inspect")
@click.argument("directory", type=PathType(path_type=Path))
@click.option("--stages", "num_stages", type=click.IntRange(1), default=2, show_default=True, help="Number of stages.")
def inspect(directory: Path, num_stages: int) -> None:
    """Show an artifact's model and sizes, and where to cut it."""
    from export.inspection import print_inspection  # noqa: PLC0415

    print_inspection(directory, num_stages)
