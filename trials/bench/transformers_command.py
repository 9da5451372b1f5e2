"""`broker-pipeline bench transformers`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import tempfile
from pathlib import Path
from statistics import median

import click

from broker_pipeline.errors import ConfigurationError
from trials.bench.in_process.in_process import PROGRAM, TRANSFORMERS_PROGRAM, InProcess
from trials.bench.machine import MachineFacts
from trials.bench.pipeline.command import shape_or_demo
from trials.bench.pipeline.pipeline_row import COLUMNS, PipelineRow, row_of
from trials.bench.report import BenchReport, command_line, json_option, show
from trials.bench.work import InProcessOrder, Round, Work, write_pictures

_POSITIVE = click.IntRange(min=1)


@click.command(name="transformers")
@click.option("--shape", help="Random weights in the shape of 2B, 8B, 30B-A3B, tiny, …  [default: the demo's model]")
@click.option("--layers", type=_POSITIVE, help="With --shape: only so many layers of it.")
@click.option("--pictures", default=64, show_default=True, type=_POSITIVE, help="Pictures of a round.")
@click.option("--picture-side", default=128, show_default=True, type=_POSITIVE, help="Pixels; 448 makes 196 tokens.")
@click.option("--output-tokens", default=64, show_default=True, type=_POSITIVE, help="Tokens of every caption.")
@click.option(
    "--concurrency", "--batch", default=32, show_default=True, type=_POSITIVE, help="Captions at the same time."
)
@click.option("--rounds", default=3, show_default=True, type=_POSITIVE, help="Rounds after the one that warms up.")
@click.option("--prompt", default="Describe this image in one sentence.", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--ours/--no-ours", "with_ours", default=True, show_default=True, help="Also time our own computation.")
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
    prompt: str,
    device: str,
    with_ours: bool,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Caption the same pictures by transformers' `generate`, and by our computation in one process.

    \b
    Examples:
      broker-pipeline bench transformers
      broker-pipeline bench transformers --shape 8B --device cuda --picture-side 448 --batch 128 \\
          --pictures 128 --rounds 1
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigurationError(
            "this compares with transformers, which is not installed: pip install 'transformers>=5.17,<6'"
        )
    machine = MachineFacts.read()
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-") as temporary:
        directory = Path(temporary)

        def work(prefix: str, num_pictures: int) -> Work:
            return Work(
                prompt=prompt,
                pictures=write_pictures(directory / "pictures", prefix, num_pictures, picture_side),
                picture_side=picture_side,
                num_output_tokens=output_tokens,
                num_in_flight=concurrency,
            )

        warm_up = work("warm-up", min(pictures, concurrency))
        order = InProcessOrder(
            model="",
            pictures=str(directory / "pictures"),
            warm_up=warm_up,
            rounds=tuple(work(f"round-{number}", pictures) for number in range(rounds)),
            num_threads=threads or len(os.sched_getaffinity(0)),
            kv_tokens=warm_up.kv_tokens(concurrency),
            device=device,
        )
        rows = asyncio.run(_measure(order, shape, layers, directory, with_ours=with_ours))
    facts = {"model": shape or "demo", "layers": layers, "concurrency": concurrency, "output_tokens": output_tokens}
    facts |= {"pictures": pictures, "picture_side": picture_side, "device": device, "threads": order.num_threads}
    show(
        BenchReport(bench="transformers", command=command_line(), machine=machine, settings=facts, rows=rows),
        COLUMNS,
        json_path,
    )


async def _measure(
    order: InProcessOrder, shape: str | None, layers: int | None, directory: Path, *, with_ours: bool
) -> list[PipelineRow]:
    artifact = await shape_or_demo(shape, layers, directory)
    programs = {"one process, ours": PROGRAM} if with_ours else {}
    programs["transformers generate"] = TRANSFORMERS_PROGRAM
    measured: dict[str, list[Round]] = {}
    for name, program in programs.items():
        click.echo(name, err=True)
        async with InProcess.open(program, order, artifact, directory / program.rpartition(".")[2]) as process:
            measured[name] = [await process.run(number) for number in range(len(order.rounds))]
    best = median(each.tokens_per_s for each in next(iter(measured.values()))) if with_ours else None
    return [row_of(name, done, best) for name, done in measured.items()]
