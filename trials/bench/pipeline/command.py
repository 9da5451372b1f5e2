"""`broker-pipeline bench pipeline`."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from broker_pipeline.config import PathType, refuse_nan, refuse_unread
from broker_pipeline.errors import ConfigurationError, PipelineError
from broker_pipeline.logs import log_errors_only
from broker_pipeline.tools.machine import MachineFacts
from trials.bench.options import POSITIVE, kv_dtype_option, repeated, shape_or_demo, work_options
from trials.bench.pipeline.comparison import measure_pipeline
from trials.bench.pipeline.row import COLUMNS, PipelineRow
from trials.bench.pipeline.settings import PipelineSettings
from trials.bench.report import BenchReport, json_option, save, show
from trials.directories import fresh_directory

_COMMANDS = ("gateway", "conductor", "vision", "stage")


@click.command(name="pipeline")
@repeated("--stages", "num_stages", (1, 3), "Number of stages")
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="LAYOUT",
    help="In place of --stages: copies=4, stages=4 or copies=2,stages=2, as for up; may be given several times.",
)
@click.option(
    "--vision",
    multiple=True,
    type=click.Choice(["separate", "shared", "every", "beside"]),
    default=("separate",),
    show_default=True,
    help="Where vision runs: in a process of its own, in that of each copy's first stage, in that of every stage, or "
    "in one beside every stage, on its GPU; may be given several times.",
)
@click.option(
    "--model",
    type=PathType(path_type=Path, file_okay=False, exists=True, resolve_path=True),
    help="Artifact to run.  [default: the demo's model]",
)
@work_options
@click.option(
    "--questions",
    "num_questions",
    default=1,
    show_default=True,
    type=POSITIVE,
    help="Captions of each picture, with prompts that differ at the end; --pictures counts captions.",
)
@click.option(
    "--questions-apart/--questions-together",
    default=False,
    show_default=True,
    help="Ask each question about all pictures before the next one: sessions about a picture have ended by then, and "
    "others begin with what is kept of them, where --kv-tokens leave room for it.",
)
@click.option(
    "--sample/--greedy",
    "is_sampled",
    default=False,
    show_default=True,
    help="Sample as Qwen3-VL Instruct recommends (temperature 0.7, top-p 0.8, top-k 20); needs --no-in-process.",
)
@click.option(
    "--max-sessions", type=POSITIVE, help="Most sessions in flight at the conductor.  [default: --concurrency]"
)
@click.option(
    "--device", default="cpu", show_default=True, help="cpu, cuda (one GPU each while there are enough) or cuda:N."
)
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), help="[default: the model's]")
@click.option(
    "--threads",
    "num_threads",
    type=POSITIVE,
    help="Threads of each worker.  [default: 1 on GPUs, else the cores, shared out]",
)
@click.option(
    "--conductors",
    "num_conductors",
    type=POSITIVE,
    help="Conductors, each with some of the copies.  [default: as many as the planner expects to be needed]",
)
@click.option(
    "--kv-tokens",
    type=POSITIVE,
    help="KV tokens of every stage.  [default: what the sessions need; what fits, with --gpu-memory-gb]",
)
@kv_dtype_option
@click.option(
    "--gpu-memory-gb",
    type=click.FloatRange(min=0, min_open=True),
    callback=refuse_nan,
    help="Take GPUs for such of so many GB (10^9 bytes), as for `up`.",
)
@click.option(
    "--in-process/--no-in-process",
    "with_in_process",
    default=True,
    show_default=True,
    help="Also do the work in one process: on the CPU interleaved with the system, on a GPU before it.",
)
@click.option(
    "--in-process-threads",
    multiple=True,
    type=POSITIVE,
    help="Threads of the one process; may be given several times.  [default: all cores, and on the CPU also 1]",
)
@click.option("--predict", is_flag=True, help="Show what the planner expects of each system beside what is measured.")
@click.option("--mps", is_flag=True, help="Workers share their GPU through NVIDIA's MPS instead of time slicing.")
@click.option(
    "--with",
    "extra",
    multiple=True,
    metavar="'COMMAND FLAGS'",
    help="Further flags of gateway, conductor, vision or stage, such as 'conductor --max-preparing 32'.",
)
@click.option(
    "--profile",
    type=PathType(path_type=Path, file_okay=False),
    help="Have every service write a trace into STAGES-VISION in this directory; see `broker-pipeline trace --help`.",
)
@click.option(
    "--work-dir",
    type=PathType(path_type=Path, file_okay=False),
    help="Where pictures, logs and servers' files are kept.  [default: a temporary directory]",
)
@json_option
def command(json_path: Path | None, work_dir: Path | None, model: Path | None, **options: Any) -> None:
    """Caption pictures through the whole system, and by the same computation in one process.

    One process decodes pictures, encodes them in batches, and batches continuously; the whole system does the same
    work through HTTP, NATS and Redis, with servers of its own, on the same cores. Pictures are generated, no two of
    them alike; every caption has the same number of tokens. Below the table stands where the time of the last round
    went. A system that fails does not keep the others from their turn.

    A round begins and ends with few sessions under way: "middle half" is the rate without that, as a long queue has it.

    \b
    Examples:
      broker-pipeline bench pipeline
      broker-pipeline bench pipeline --shape 8B --device cuda:0 --stages 1 --vision shared --picture-side 448 \\
          --concurrency 256 --pictures 1024 --rounds 1 --no-in-process
    """
    log_errors_only()
    _check_model(options, model)
    if options["layouts"]:
        refuse_unread("num_stages", why="has no effect with --layout: give one of them")
    if not options["with_in_process"]:
        refuse_unread("in_process_threads", why="has no effect with --no-in-process: give one of them")
    if options["device"] == "cpu":
        refuse_unread("mps", "gpu_memory_gb", why="is for GPUs: add --device cuda")
    machine = MachineFacts.read()
    shape, num_layers, quantize = options.pop("shape"), options.pop("num_layers"), options.pop("quantize")
    settings = _settings(options)
    facts = {"model": model.name if model else shape or "demo", "layers": num_layers, "quantize": quantize}
    facts |= msgspec.to_builtins(settings)
    rows: list[PipelineRow] = []

    def report() -> BenchReport:
        return BenchReport(bench="pipeline", machine=machine, settings=facts, rows=rows, notes=_notes(rows))

    with fresh_directory(work_dir, "work_dir") as directory:

        async def measure() -> None:
            artifact = model or await shape_or_demo(shape, num_layers, quantize, directory)
            async with aclosing(measure_pipeline(settings, artifact, directory)) as measured:
                async for row in measured:
                    rows.append(row)
                    rows.sort(key=lambda row: bool(row.breakdowns))  # what one process does stands above
                    save(report(), json_path)  # what is measured stays, whatever comes after it

        try:
            uvloop.run(measure())
        except PipelineError:
            if rows:
                show(report(), COLUMNS, json_path)
            raise
    show(report(), COLUMNS, json_path)


def _check_model(options: dict[str, Any], model: Path | None) -> None:
    if options["shape"] and model:
        raise ConfigurationError("--shape and --model are two models; give one of them", field="shape")
    if options["quantize"] and model:
        raise ConfigurationError("--model is quantized already, or not: export decides", field="quantize")
    if options["num_layers"] and not options["shape"]:
        raise ConfigurationError("--layers takes layers of a --shape", field="layers")
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


def _settings(options: dict[str, Any]) -> PipelineSettings:
    if options["num_questions"] > 1 and options["with_in_process"]:
        raise ConfigurationError("one process computes every prompt; give --no-in-process as well", field="questions")
    if options["gpu_memory_gb"] and options["with_in_process"]:
        raise ConfigurationError("one process takes the whole GPU; give --no-in-process as well", field="gpu_memory_gb")
    if options["kv_dtype"] == "fp8" and options["with_in_process"]:
        problem = "one process holds keys and values in its own dtype; give --no-in-process as well"
        raise ConfigurationError(problem, field="kv_dtype")
    if options["is_sampled"] and options["with_in_process"]:
        raise ConfigurationError("one process decodes greedily; give --no-in-process as well", field="sample")
    num_sessions = options.pop("max_sessions") or options["num_in_flight"]
    extra, profile = _extra_arguments(options.pop("extra")), options.pop("profile")
    extra["conductor"] = ("--max-sessions", str(num_sessions), *extra.get("conductor", ()))
    return PipelineSettings(
        num_sessions=num_sessions,
        profile=str(profile.absolute()) if profile else None,
        extra_arguments=extra,
        **options,
    )


def _extra_arguments(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    extra: dict[str, tuple[str, ...]] = {}
    for line in lines:
        name, *flags = shlex.split(line) or [""]
        if name not in _COMMANDS:
            raise ConfigurationError(f"--with {line!r} does not begin with one of {', '.join(_COMMANDS)}", field="with")
        extra[name] = (*extra.get(name, ()), *flags)
    return extra


def _notes(rows: Iterable[PipelineRow]) -> tuple[str, ...]:
    """Say where the last round of each system went."""
    return tuple("\n  ".join([row.name, *row.breakdowns[-1].lines()]) for row in rows if row.breakdowns)
