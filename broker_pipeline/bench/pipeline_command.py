"""`broker-pipeline bench pipeline`."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
import structlog

from broker_pipeline.bench.machine import MachineFacts
from broker_pipeline.bench.pipeline import PipelineRow, PipelineSettings, measure_pipeline
from broker_pipeline.bench.report import BenchReport, Column, command_line, json_option, show
from broker_pipeline.demo.artifact import make_artifact
from broker_pipeline.demo.pictures import trained_model
from broker_pipeline.errors import ConfigurationError, ServerStartError
from broker_pipeline.local.processes import ChildProcess

_POSITIVE = click.IntRange(min=1)
_WRITE_SHAPE = "export.shape_checkpoint"


def _programs(row: PipelineRow) -> str:
    used = sorted(row.cpu_s.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in used if seconds >= 0.05)


COLUMNS: list[Column] = [
    ("", lambda row: row.name),
    ("tokens/s (p10-p90)", lambda row: row.tokens_per_s),
    ("captions/s", lambda row: row.captions_per_s),
    ("of one process", lambda row: f"{100 * row.share:.0f} %"),
    ("cores busy", lambda row: f"{row.num_cores:.2f}"),
    ("seconds of a core, by program", _programs),
]


@click.command(name="pipeline")
@click.option("--stages", multiple=True, type=_POSITIVE, default=(1, 3), show_default=True, help="Numbers of stages.")
@click.option(
    "--model",
    type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    help="Artifact to run.  [default: the demo's model]",
)
@click.option(
    "--shape", metavar="NAME", help="Instead: random weights in the shape of 2B, 4B, 8B, 32B, 30B-A3B, tiny, …"
)
@click.option("--layers", type=_POSITIVE, help="With --shape: only so many layers of it.")
@click.option("--pictures", default=64, show_default=True, type=_POSITIVE, help="Pictures of a round.")
@click.option("--picture-side", default=128, show_default=True, type=_POSITIVE, help="Pixels; 448 makes 196 tokens.")
@click.option("--output-tokens", default=64, show_default=True, type=_POSITIVE, help="Tokens of every caption.")
@click.option("--concurrency", default=32, show_default=True, type=_POSITIVE, help="Captions at the same time.")
@click.option("--rounds", default=3, show_default=True, type=_POSITIVE, help="Rounds after the one that warms up.")
@click.option("--prompt", default="Describe this image in one sentence.", show_default=True)
@click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda (one card each while there are enough) or cuda:N."
)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="[default: the model's]")
@click.option("--threads", type=_POSITIVE, help="Threads of each worker.  [default: the cores shared out]")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where pictures, logs and servers' files are kept.  [default: a temporary directory]",
)
@json_option
def command(json_path: Path | None, work_dir: Path | None, **options: Any) -> None:
    """Caption pictures through the whole system, and by the same computation in one process.

    One process decodes pictures, encodes them in batches, and batches continuously; the whole system does the same
    work through HTTP, NATS and Redis, with servers of its own, on the same cores. Pictures are generated, no two of
    them alike; every caption has the same number of tokens.

    \b
    Examples:
      broker-pipeline bench pipeline
      broker-pipeline bench pipeline --shape 8B --device cuda --stages 1 --stages 2 --picture-side 448 --concurrency 256
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    machine = MachineFacts.read()
    settings = _settings(options)
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-") as temporary:
        directory = work_dir.absolute() if work_dir else Path(temporary)
        if work_dir and work_dir.exists() and any(work_dir.iterdir()):
            raise ConfigurationError(f"{work_dir} is not empty: a benchmark needs a fresh directory", field="work_dir")
        directory.mkdir(parents=True, exist_ok=True)
        rows = asyncio.run(_measure(settings, options, directory.absolute()))
    facts = {"model": _model_name(options), **msgspec.to_builtins(settings)}
    report = BenchReport(bench="pipeline", command=command_line(), machine=machine, settings=facts, rows=rows)
    show(report, COLUMNS, json_path)


def _settings(options: dict[str, Any]) -> PipelineSettings:
    return PipelineSettings(
        num_stages=options["stages"],
        num_pictures=options["pictures"],
        picture_side=options["picture_side"],
        num_output_tokens=options["output_tokens"],
        num_in_flight=options["concurrency"],
        num_rounds=options["rounds"],
        prompt=options["prompt"],
        device=options["device"],
        dtype=options["dtype"],
        num_threads=options["threads"],
    )


async def _measure(settings: PipelineSettings, options: dict[str, Any], directory: Path) -> list[PipelineRow]:
    model = await _model(options, directory)
    return await measure_pipeline(settings, model, directory, _say)


async def _model(options: dict[str, Any], directory: Path) -> Path:
    if options["shape"] and options["model"]:
        raise ConfigurationError("--shape and --model are two models; give one of them", field="shape")
    if options["layers"] and not options["shape"]:
        raise ConfigurationError("--layers takes layers of a --shape", field="layers")
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if options["model"]:
        return Path(options["model"])
    if not options["shape"]:
        _say("the demo's model")
        return await make_artifact(directory, trained_model())
    _say(f"random weights in the shape of {options['shape']}")
    checkpoint = directory / "checkpoint"
    await write_shape(options["shape"], options["layers"], checkpoint, directory / "checkpoint.log")
    return await make_artifact(directory, checkpoint)


async def write_shape(shape: str, num_layers: int | None, checkpoint: Path, log_path: Path) -> None:
    """Write a checkpoint of random weights; raises `ServerStartError` with the last words of what failed."""
    arguments = [shape, str(checkpoint), *([str(num_layers)] if num_layers else [])]
    child = await ChildProcess.spawn("checkpoint", [sys.executable, "-m", _WRITE_SHAPE, *arguments], log_path=log_path)
    try:
        returncode = await child.wait()
    finally:
        await child.destroy()
    if returncode != 0:
        said = "\n".join(child.last_lines())
        raise ServerStartError(f"could not make random weights (exit status {returncode}):\n{said}")


def _model_name(options: dict[str, Any]) -> str:
    if options["shape"]:
        return f"{options['shape']}, {options['layers']} layers" if options["layers"] else str(options["shape"])
    return options["model"].name if options["model"] else "demo"


def _say(line: str) -> None:
    click.echo(line, err=True)
