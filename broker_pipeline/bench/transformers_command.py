"""`broker-pipeline bench transformers`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import tempfile
from pathlib import Path

import click

from broker_pipeline.bench.in_process import PROGRAM, TRANSFORMERS_PROGRAM, run_rounds
from broker_pipeline.bench.machine import MachineFacts
from broker_pipeline.bench.pipeline import PipelineRow, row_of
from broker_pipeline.bench.pipeline_command import COLUMNS, write_shape
from broker_pipeline.bench.report import BenchReport, command_line, json_option, show
from broker_pipeline.bench.spread import Spread
from broker_pipeline.bench.work import InProcessOrder, Work, write_pictures
from broker_pipeline.demo.artifact import make_artifact
from broker_pipeline.demo.pictures import trained_model
from broker_pipeline.errors import ConfigurationError

_POSITIVE = click.IntRange(min=1)


@click.command(name="transformers")
@click.option("--shape", help="Random weights in the shape of 2B, 8B, 30B-A3B, tiny, …  [default: the demo's model]")
@click.option("--layers", type=_POSITIVE, help="With --shape: only so many layers of it.")
@click.option("--pictures", default=64, show_default=True, type=_POSITIVE, help="Pictures of a round.")
@click.option("--picture-side", default=128, show_default=True, type=_POSITIVE, help="Pixels; 448 makes 196 tokens.")
@click.option("--output-tokens", default=64, show_default=True, type=_POSITIVE, help="Tokens of every caption.")
@click.option("--concurrency", default=32, show_default=True, type=_POSITIVE, help="Captions at the same time.")
@click.option("--rounds", default=3, show_default=True, type=_POSITIVE, help="Rounds after the one that warms up.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", type=_POSITIVE, help="CPU threads of one operation.  [default: all cores]")
@json_option
def command(  # noqa: PLR0913 - one for each option
    *,
    shape: str | None,
    layers: int | None,
    pictures: int,
    picture_side: int,
    output_tokens: int,
    concurrency: int,
    rounds: int,
    device: str,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Caption the same pictures by transformers' `generate`, and by our computation in one process.

    \b
    Examples:
      broker-pipeline bench transformers
      broker-pipeline bench transformers --shape 8B --device cuda --picture-side 448 --concurrency 128
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigurationError("this compares with transformers: pip install 'transformers>=5.17,<6'")
    machine = MachineFacts.read()
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-") as temporary:
        directory = Path(temporary)

        def work(prefix: str) -> Work:
            names = write_pictures(directory / "pictures", prefix, pictures, picture_side)
            return Work(
                prompt="Describe this image in one sentence.",
                pictures=names,
                num_output_tokens=output_tokens,
                num_in_flight=concurrency,
            )

        order = InProcessOrder(
            model="",
            pictures=str(directory / "pictures"),
            warm_up=work("warm-up"),
            rounds=tuple(work(f"round-{number}") for number in range(rounds)),
            num_threads=threads or len(os.sched_getaffinity(0)),
            device=device,
        )
        rows = asyncio.run(_measure(order, shape, layers, directory))
    facts = {"model": shape or "demo", "layers": layers, "concurrency": concurrency, "output_tokens": output_tokens}
    facts |= {"pictures": pictures, "picture_side": picture_side, "device": device, "threads": order.num_threads}
    show(
        BenchReport(bench="transformers", command=command_line(), machine=machine, settings=facts, rows=rows),
        COLUMNS,
        json_path,
    )


async def _measure(order: InProcessOrder, shape: str | None, layers: int | None, directory: Path) -> list[PipelineRow]:
    checkpoint = trained_model()
    if shape is not None:
        checkpoint = directory / "checkpoint"
        await write_shape(shape, layers, checkpoint, directory / "checkpoint.log")
    if checkpoint is None:
        raise ConfigurationError("this installation ships no demo model; give a --shape", field="shape")
    artifact = await make_artifact(directory, checkpoint)
    measured = {}
    for name, program, model in (
        ("one process, ours", PROGRAM, artifact),
        ("transformers generate", TRANSFORMERS_PROGRAM, checkpoint),
    ):
        click.echo(name, err=True)
        measured[name] = await run_rounds(program, order, model, directory)
    ours = Spread.of([each.tokens_per_s for each in measured["one process, ours"]]).median
    return [row_of(name, done, ours) for name, done in measured.items()]
