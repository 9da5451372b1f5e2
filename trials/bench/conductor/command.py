"""`broker-pipeline bench conductor`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import msgspec
import uvloop

from broker_pipeline.config import refuse_nan
from broker_pipeline.logs import log_errors_only
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.tools.machine import MachineFacts
from trials.bench.conductor.measurement import measure_conductor
from trials.bench.conductor.rows import PARTS, ConductorBenchSettings, ConductorRow
from trials.bench.options import repeated, seconds_option
from trials.bench.report import BenchReport, Column, json_option, show
from trials.bench.spread import shown

_NOTE = (
    "Microseconds per caption: CPU time of the conductor's process, all in, in half of the time. Its parts: by the "
    "clock on the wall, in the other half, so that on a busy machine they come to more than that, and the rest falls "
    "below nothing."
)
_COLUMNS: list[Column] = [
    ("sessions", lambda row: row.num_sessions),
    ("tokens/s", lambda row: f"{row.num_tokens / row.seconds:,.0f}"),
    ("a step", lambda row: shown(row.num_tokens / max(1, row.num_microbatches))),
    *((part, lambda row, part=part: shown(row.part_us(part))) for part in PARTS),
    ("rest", lambda row: shown(row.rest_us)),
    ("a caption, µs", lambda row: shown(row.caption_us)),
    ("core busy", lambda row: f"{100 * row.total_s / row.seconds:.0f} %"),
]


@click.command(name="conductor")
@repeated("--sessions", "sessions", (16, 64, 256, 1024), "Sessions in flight", click.IntRange(1, 8192))
@click.option("--stages", default=1, show_default=True, type=click.IntRange(min=1, max=64), help="Of the route.")
@click.option("--output-tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Tokens of a caption.")
@click.option(
    "--pace",
    default=6000.0,
    show_default=True,
    type=click.FloatRange(min=1.0),
    callback=refuse_nan,
    help="Tokens per second of the stages that answer.",
)
@seconds_option
@click.option("--watched", is_flag=True, help="As if somebody streamed every session.")
@json_option
def command(
    sessions: tuple[int, ...],
    stages: int,
    output_tokens: int,
    pace: float,
    seconds: float,
    watched: bool,
    json_path: Path | None,
) -> None:
    """Measure what a conductor spends on a caption, and on what.

    A whole conductor runs here, with a NATS and a Redis server of its own; a second process is its clients, vision
    worker and stages, which answer at a pace that does not depend on the number of sessions. The figures are
    microseconds of a core of the conductor's process per caption, from the queue to the acknowledgement.

    \b
    Examples:
      broker-pipeline bench conductor
      broker-pipeline bench conductor --sessions 512 --stages 4 --pace 12000 --json conductor.json
    """
    log_errors_only()
    machine = MachineFacts.read()
    settings = ConductorBenchSettings(
        num_sessions=sessions,
        num_stages=stages,
        num_output_tokens=output_tokens,
        tokens_per_s=pace,
        seconds=seconds,
        are_watched=watched,
    )
    rows = uvloop.run(_measure(settings))
    facts = {**msgspec.to_builtins(settings), "event_loop": "uvloop"}
    show(
        BenchReport(bench="conductor", machine=machine, settings=facts, rows=rows, notes=(_NOTE,)), _COLUMNS, json_path
    )


async def _measure(settings: ConductorBenchSettings) -> list[ConductorRow]:
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-") as directory:
        async with EmbeddedNats(Path(directory, "nats")) as nats, EmbeddedRedis(Path(directory, "redis")) as redis:
            return await measure_conductor(settings, nats.url, redis.url)
