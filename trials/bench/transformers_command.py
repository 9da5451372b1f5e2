"""`broker-pipeline bench transformers`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
import msgspec

from broker_pipeline.config import refuse_unread
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.machine import MachineFacts
from trials.bench.in_process.loaded_process import PROGRAM, TRANSFORMERS_PROGRAM, LoadedProcess
from trials.bench.options import POSITIVE, say, shape_or_demo, work_options
from trials.bench.pipeline.row import COLUMNS, PipelineRow, row_of
from trials.bench.report import BenchReport, json_option, show
from trials.bench.work import InProcessOrder, Round, WorkSettings


@click.command(name="transformers")
@work_options
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--ours/--no-ours", "with_ours", default=True, show_default=True, help="Also time our own computation.")
@click.option("--threads", type=POSITIVE, help="CPU threads of one operation.  [default: all cores]")
@json_option
def command(
    *,
    shape: str | None,
    num_layers: int | None,
    quantize: str | None,
    with_ours: bool,
    threads: int | None,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Caption the same pictures by transformers' `generate`, and by our computation in one process.

    \b
    Examples:
      broker-pipeline bench transformers
      broker-pipeline bench transformers --shape 8B --device cuda --picture-side 448 --batch 128 \\
          --pictures 128 --rounds 1
    """
    if shape is None:
        refuse_unread("num_layers", why="takes layers of a shape: add --shape")
    if importlib.util.find_spec("transformers") is None:
        raise ConfigurationError(
            "this compares with transformers, which is not installed: pip install 'transformers>=5.17,<6'"
        )
    machine, settings = MachineFacts.read(), WorkSettings(**options)
    programs = {"one process, ours": PROGRAM} if with_ours else {}
    programs["transformers generate"] = TRANSFORMERS_PROGRAM
    num_threads = threads or len(os.sched_getaffinity(0))

    async def measure(directory: Path) -> list[PipelineRow]:
        artifact = await shape_or_demo(shape, num_layers, quantize, directory)
        return await _measure(settings, programs, artifact, num_threads, directory)

    with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-") as temporary:
        rows = asyncio.run(measure(Path(temporary)))
    facts = {"model": shape or "demo", "layers": num_layers, "quantize": quantize, "threads": num_threads}
    facts |= msgspec.to_builtins(settings)
    show(BenchReport(bench="transformers", machine=machine, settings=facts, rows=rows), COLUMNS, json_path)


async def _measure(
    settings: WorkSettings, programs: dict[str, str], artifact: Path, num_threads: int, directory: Path
) -> list[PipelineRow]:
    rounds = settings.draw(directory / "pictures")
    order = InProcessOrder(
        model=str(artifact),
        rounds=rounds,
        num_threads=num_threads,
        kv_tokens=rounds.warm_up.kv_tokens(settings.num_in_flight),
        device=settings.device,
    )
    measured: dict[str, list[Round]] = {}
    for name, program in programs.items():
        say(name)
        async with LoadedProcess.open(program, order, directory / program.rpartition(".")[2]) as process:
            measured[name] = [await process.run(number) for number in range(settings.num_rounds)]
    best = median(each.tokens_per_s for each in next(iter(measured.values()))) if PROGRAM in programs.values() else None
    return [row_of(name, done, best) for name, done in measured.items()]
