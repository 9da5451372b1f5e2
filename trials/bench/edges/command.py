"""`broker-pipeline bench edges`."""

from __future__ import annotations

import logging
import statistics
from pathlib import Path

import click
import msgspec
import structlog
import uvloop

from broker_pipeline.tools.machine import MachineFacts
from trials.bench.edges.ways import WAYS, measure_way
from trials.bench.hop.command import bench_server
from trials.bench.report import BenchReport, Column, json_option, show
from trials.bench.spread import shown


class EdgeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One way with one size."""

    way: str
    num_bytes: int
    p50_s: float
    p99_s: float
    bytes_per_s: float
    of_raw_tcp: float
    """Times the rate of bare sockets in this run."""


_COLUMNS: list[Column] = [
    ("way", lambda row: row.way),
    ("payload, KiB", lambda row: row.num_bytes // 1024),
    ("there and an answer, p50, ms", lambda row: shown(row.p50_s * 1e3)),
    ("p99, ms", lambda row: shown(row.p99_s * 1e3)),
    ("MB/s", lambda row: f"{row.bytes_per_s / 1e6:,.0f}"),
    ("of raw TCP", lambda row: f"{row.of_raw_tcp:.2f}"),
]


@click.command(name="edges")
@click.option("--nats-url", help="Server for what goes over NATS.  [default: one of its own]")
@click.option(
    "--kib",
    "sizes",
    multiple=True,
    type=click.IntRange(4, 256 * 1024),
    default=(8, 256, 3072, 16384),
    show_default=True,
    help="KiB of a payload; may be given several times.",
)
@click.option("--trips", default=1000, show_default=True, type=click.IntRange(min=20), help="Of 8 KiB; larger: fewer.")
@json_option
def command(nats_url: str | None, sizes: tuple[int, ...], trips: int, json_path: Path | None) -> None:
    """Time payloads between two processes of this machine: every edge alongside NATS, bare sockets and memcpy.

    \b
    Examples:
      broker-pipeline bench edges
      broker-pipeline bench edges --kib 256 --trips 200 --json edges.json
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    machine = MachineFacts.read()
    rows = uvloop.run(_measure(nats_url, sizes, trips))
    report = BenchReport(
        bench="edges",
        machine=machine,
        settings={"trips": trips, "is_embedded": nats_url is None},
        rows=rows,
        notes=("Edges and NATS: a whole message with its checks. memcpy: a copy within this process.",),
    )
    show(report, _COLUMNS, json_path)


async def _measure(nats_url: str | None, sizes: tuple[int, ...], trips: int) -> list[EdgeRow]:
    rows = []
    async with bench_server(nats_url) as url:
        for size in sizes:
            num_trips = max(20, trips * 8 // max(size, 8))
            samples = {way: await measure_way(way, url, size * 1024, num_trips) for way in WAYS}
            raw = samples["raw TCP"].bytes_per_s
            for way, sample in samples.items():
                rows.append(
                    EdgeRow(
                        way=way,
                        num_bytes=size * 1024,
                        p50_s=statistics.median(sample.trips_s),
                        p99_s=statistics.quantiles(sample.trips_s, n=100, method="inclusive")[-1],
                        bytes_per_s=sample.bytes_per_s,
                        of_raw_tcp=sample.bytes_per_s / raw,
                    )
                )
    return rows
