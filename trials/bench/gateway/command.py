"""`broker-pipeline bench gateway`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click
import msgspec
import uvloop

from broker_pipeline.config import PathType, refuse_nan, refuse_unread
from broker_pipeline.tools.machine import MachineFacts
from trials.bench.gateway.measurement import measure_gateway
from trials.bench.gateway.rows import GatewayBenchSettings, GatewayRow
from trials.bench.options import POSITIVE, repeated, seconds_option, unread_option
from trials.bench.report import BenchReport, Column, json_option, show
from trials.bench.spread import shown

_OWN = ("read", "store", "tell")
_PARTS = ("gateway", "nats", "redis", "answering", "clients")
_COLUMNS: list[Column] = [
    ("processes", lambda row: row.num_processes),
    ("captions/s", lambda row: shown(row.captions_per_s)),
    ("submission p50, p99, ms", lambda row: f"{_ms(row.submission_s.median)}, {_ms(row.submission_p99_s)}"),
    ("caption p50, p99, ms", lambda row: f"{_ms(row.caption_s.median)}, {_ms(row.caption_p99_s)}"),
    ("read, store, tell, ms", lambda row: ", ".join(_ms(row.own_s.get(part, 0.0)) for part in _OWN)),
    *((f"{part}, ms", lambda row, part=part: shown(row.cpu_ms(part))) for part in _PARTS),
    ("busy", lambda row: " ".join(f"{100 * used / row.seconds:.0f} %" for used in row.gateway_processes_s)),
    ("MB", lambda row: f"{row.gateway_bytes / 1e6:.0f}"),
    ("refused", lambda row: " ".join(f"{count} x {what}" for what, count in row.refusals.items()) or "none"),
]
_NOTE = (
    "read: until a request is read and checked, store: until NATS and Redis have its job, tell: from the arrival of "
    "tokens to their being written, on average. Milliseconds below gateway … clients are CPU time per caption. busy: "
    "the supervising process, where there is one, then each process of the gateway. MB: memory of these together."
)


@click.command(name="gateway")
@repeated("--processes", "processes", (1,), "Processes of the gateway")
@click.option("--clients", type=POSITIVE, help="Processes that send.  [default: an eighth of the cores]")
@click.option("--answerers", type=POSITIVE, help="Processes that answer jobs.  [default: a quarter of the cores]")
@click.option(
    *("--concurrency", "num_in_flight"),
    default=64,
    show_default=True,
    type=POSITIVE,
    help="Captions at the same time.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    callback=refuse_nan,
    help="Captions to begin per second.  [default: as many as come back]",
)
@click.option("--stream", "is_streamed", is_flag=True, help="Stream chat completions; a submission is its first event.")
@click.option("--bulk", "is_bulk", is_flag=True, help="Many pictures in a request, as `broker-pipeline caption` sends.")
@unread_option
@click.option("--picture-side", default=448, show_default=True, type=POSITIVE, help="Pixels; 448 makes about 100 kB.")
@seconds_option
@click.option(
    "--data-dir",
    type=PathType(path_type=Path, file_okay=False, exists=True),
    help="Where the servers write.  [default: the system's directory for temporary files]",
)
@json_option
def command(
    *,
    processes: tuple[int, ...],
    clients: int | None,
    answerers: int | None,
    data_dir: Path | None,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Measure captions/s through one address of a gateway, without a model behind it.

    Starts a NATS and a Redis server of its own, `broker-pipeline gateway --processes N`, processes that answer jobs at
    once, and processes that post one picture after the other and wait for each caption by a long poll. Every picture
    is other bytes, so that each is stored.

    \b
    Examples:
      broker-pipeline bench gateway
      broker-pipeline bench gateway --processes 1 --processes 8 --concurrency 512 --json gateway.json
      broker-pipeline bench gateway --stream --concurrency 900 --unread 100
      broker-pipeline bench gateway --processes 8 --concurrency 512 --bulk
    """
    if options["is_bulk"]:
        refuse_unread("is_streamed", why="has no effect with --bulk: give one of them")
    machine, num_cores = MachineFacts.read(), len(os.sched_getaffinity(0))
    rows: list[GatewayRow] = []
    settings = GatewayBenchSettings(
        num_processes=1,
        num_clients=min(clients or max(1, num_cores // 8), options["num_in_flight"]),
        num_answerers=answerers or max(1, num_cores // 4),
        **options,
    )
    for count in processes:
        with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-", dir=data_dir) as directory:
            measured = measure_gateway(msgspec.structs.replace(settings, num_processes=count), Path(directory))
            rows.append(uvloop.run(measured))
    facts = {**msgspec.to_builtins(settings), "num_processes": processes}
    show(BenchReport(bench="gateway", machine=machine, settings=facts, rows=rows, notes=(_NOTE,)), _COLUMNS, json_path)


def _ms(seconds: float) -> str:
    return shown(1e3 * seconds)
