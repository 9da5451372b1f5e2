"""`broker-pipeline bench edges`."""

from __future__ import annotations

import statistics
from pathlib import Path

import click
import msgspec
import uvloop

from broker_pipeline.config import refuse_unread
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.logs import log_errors_only
from broker_pipeline.tools.machine import MachineFacts
from trials.bench.edges.far_end import run_far_end
from trials.bench.edges.sample import Sample
from trials.bench.edges.ways import WAYS, WAYS_BETWEEN_HOSTS, far_end, measure_way
from trials.bench.hop.command import bench_server
from trials.bench.options import repeated
from trials.bench.report import BenchReport, Column, json_option, show
from trials.bench.spread import shown


class EdgeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One way with one size."""

    way: str
    num_bytes: int
    beside_bytes: int = 0
    """Size of what was under way all the time while these were timed; 0 for nothing."""
    p50_s: float
    p99_s: float
    bytes_per_s: float
    """With several under way; of what was under way beside them."""
    of_raw_tcp: float | None
    """Times the rate of bare sockets in this run; None where those were left out."""


_COLUMNS: list[Column] = [
    ("way", lambda row: row.way),
    ("payload, KiB", lambda row: row.num_bytes // 1024),
    ("beside, KiB", lambda row: row.beside_bytes // 1024 or ""),
    ("there and an answer, p50, ms", lambda row: shown(row.p50_s * 1e3)),
    ("p99, ms", lambda row: shown(row.p99_s * 1e3)),
    ("MB/s", lambda row: f"{row.bytes_per_s / 1e6:,.0f}"),
    ("of raw TCP", lambda row: "" if row.of_raw_tcp is None else f"{row.of_raw_tcp:.2f}"),
]
_BESIDE_KIB = 8
"""Payloads that are timed beside large ones: a decode step's."""


@click.command(name="edges")
@click.option("--nats-url", help="Server for what goes over NATS.  [default: one of its own]")
@repeated("--kib", "sizes", (8, 256, 3072, 16384), "KiB of a payload", click.IntRange(4, 256 * 1024))
@click.option(
    "--beside",
    type=click.IntRange(64, 256 * 1024),
    help="Also time payloads of 8 KiB while some of so many KiB are under way, two at a time.",
)
@click.option(
    "--way", "ways", multiple=True, type=click.Choice(WAYS), help="May be given several times. [default: all]"
)
@click.option("--trips", default=1000, show_default=True, type=click.IntRange(min=20), help="Of 8 KiB; larger: fewer.")
@click.option("--answer", "answers", is_flag=True, help="Be the other end, for a run with --elsewhere, until Ctrl-C.")
@click.option("--elsewhere", is_flag=True, help="The other end runs on another host, with --answer.")
@json_option
def command(
    nats_url: str | None,
    sizes: tuple[int, ...],
    beside: int | None,
    ways: tuple[str, ...],
    trips: int,
    answers: bool,
    elsewhere: bool,
    json_path: Path | None,
) -> None:
    """Time payloads between two processes: every edge alongside NATS, bare sockets and memcpy.

    \b
    Examples:
      broker-pipeline bench edges
      broker-pipeline bench edges --kib 256 --trips 200 --json edges.json
    Between two hosts:
      host-b$ broker-pipeline bench edges --nats-url nats://broker:4222 --answer
      host-a$ broker-pipeline bench edges --nats-url nats://broker:4222 --elsewhere --beside 16384
    """
    log_errors_only()
    if (answers or elsewhere) and nats_url is None:
        raise ConfigurationError("--answer and --elsewhere need --nats-url: a server that both hosts reach")
    if answers:
        refuse_unread(
            "elsewhere", "sizes", "beside", "ways", "trips", "json_path", why="is for the run with --elsewhere"
        )
        run_far_end(str(nats_url))
        return
    if elsewhere and (near := set(ways) - set(WAYS_BETWEEN_HOSTS)):
        raise ConfigurationError(
            f"--way {', '.join(near)} stays on one host: leave out that or --elsewhere", field="way"
        )
    machine = MachineFacts.read()
    rows = uvloop.run(_measure(nats_url, sizes, beside or 0, trips, ways, is_elsewhere=elsewhere))
    report = BenchReport(
        bench="edges",
        machine=machine,
        settings={"trips": trips, "is_embedded": nats_url is None, "is_elsewhere": elsewhere},
        rows=rows,
        notes=("Edges and NATS: a whole message with its checks. memcpy: a copy within this process.",),
    )
    show(report, _COLUMNS, json_path)


async def _measure(
    nats_url: str | None,
    sizes: tuple[int, ...],
    beside: int,
    trips: int,
    ways: tuple[str, ...],
    *,
    is_elsewhere: bool,
) -> list[EdgeRow]:
    rows: list[EdgeRow] = []
    pairs = [(size, 0) for size in sizes] + ([(_BESIDE_KIB, beside)] if beside else [])
    async with bench_server(nats_url) as url, far_end(url, is_elsewhere=is_elsewhere) as address:
        for size, large in pairs:
            num_trips = max(20, trips * 8 // max(size, 8))
            samples = {
                way: await measure_way(way, url, address, size * 1024, num_trips, large * 1024)
                for way in (WAYS_BETWEEN_HOSTS if is_elsewhere else WAYS)
                if way in (ways or WAYS) and not (large and way == "memcpy")
            }
            rows += [_row(way, size, large, sample, samples.get("raw TCP")) for way, sample in samples.items()]
    return rows


def _row(way: str, size: int, large: int, sample: Sample, raw: Sample | None) -> EdgeRow:
    return EdgeRow(
        way=way,
        num_bytes=size * 1024,
        beside_bytes=large * 1024,
        p50_s=statistics.median(sample.trips_s),
        p99_s=statistics.quantiles(sample.trips_s, n=100, method="inclusive")[-1],
        bytes_per_s=sample.bytes_per_s,
        of_raw_tcp=sample.bytes_per_s / raw.bytes_per_s if raw is not None else None,
    )
