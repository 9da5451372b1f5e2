"""`broker-pipeline bench hop`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import click
import uvloop

from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.tools.machine import MachineFacts
from trials.bench.hop.raw_comparison import HopRow, measure_hop
from trials.bench.hop.step_messages import DecodeRow, measure_decode
from trials.bench.options import repeated
from trials.bench.report import BenchReport, Column, json_option, show, show_table
from trials.bench.spread import shown

_KIB = 1024
_COLUMNS: list[Column] = [
    ("tensor bytes", lambda row: f"{row.num_tensor_bytes // _KIB} KiB"),
    ("segments", lambda row: row.num_segments),
    ("bytes in all", lambda row: f"{row.num_bytes:,}"),
    ("raw nats-py, µs (p10-p90)", lambda row: row.raw_s.scaled(1e6)),
    ("transport, µs", lambda row: row.transport_s.scaled(1e6)),
    ("added to raw, µs", lambda row: shown(row.excess_s * 1e6)),
    ("ratio to raw", lambda row: f"{row.ratio:.2f}"),
    ("of p10s", lambda row: f"{row.quiet_ratio:.2f}"),
]


_DECODE_COLUMNS: list[Column] = [
    ("message", lambda row: row.message),
    ("sessions", lambda row: row.num_segments),
    ("bytes in all", lambda row: f"{row.num_bytes:,}"),
    ("encode, µs (p10-p90)", lambda row: row.encode_s.scaled(1e6)),
    ("decode, µs", lambda row: row.decode_s.scaled(1e6)),
    ("CPU, both ends, µs", lambda row: shown(row.cpu_s * 1e6)),
    ("one way, µs", lambda row: row.transport_s.scaled(1e6)),
]


class HopReport(BenchReport, frozen=True, kw_only=True):
    """Hops alongside raw ones, and what a decode step's messages cost."""

    decode_rows: Sequence[DecodeRow]


@click.command(name="hop")
@click.option("--nats-url", help="Server to measure.  [default: one of its own]")
@repeated("--kib", "sizes", (8, 256, 4096), "Tensor KiB of an envelope")
@repeated("--segments", "segments", (1, 32), "Sessions in an envelope", click.IntRange(1, 256))
@repeated("--envelope", "envelopes", (128, 256), "Sessions of a decode step timed by itself", click.IntRange(1, 4096))
@click.option(
    "--trips",
    default=2000,
    show_default=True,
    type=click.IntRange(min=20),
    help="Round trips of 8 KiB; larger ones are fewer.",
)
@json_option
def command(
    nats_url: str | None,
    sizes: tuple[int, ...],
    segments: tuple[int, ...],
    envelopes: tuple[int, ...],
    trips: int,
    json_path: Path | None,
) -> None:
    """Time envelopes through the transport, and raw nats-py with the same bytes on the same event loop.

    Then: what CPU time the messages of one decode step cost, between conductor and stages.

    \b
    Examples:
      broker-pipeline bench hop
      broker-pipeline bench hop --nats-url nats://broker:4222 --kib 8 --segments 32 --json hop.json
    """
    machine = MachineFacts.read()
    rows, decode_rows = uvloop.run(_measure(nats_url, sizes, segments, envelopes, trips))
    report = HopReport(
        bench="hop",
        machine=machine,
        settings={"trips": trips, "is_embedded": nats_url is None, "event_loop": "uvloop"},
        rows=rows,
        decode_rows=decode_rows,
        notes=("One way is half a round trip. Both ends are in one process, on uvloop, raw and transport alike.",),
    )
    show_table("messages of one decode step", decode_rows, _DECODE_COLUMNS)
    show(report, _COLUMNS, json_path)


async def _measure(
    nats_url: str | None, sizes: tuple[int, ...], segments: tuple[int, ...], envelopes: tuple[int, ...], trips: int
) -> tuple[list[HopRow], list[DecodeRow]]:
    async with bench_server(nats_url) as url:
        rows = [
            await measure_hop(url, size * _KIB, count, num_trips=_num_trips(size, trips))
            for size in sizes
            for count in segments
        ]
        decode_rows = [
            row for count in envelopes for row in await measure_decode(url, count, num_trips=max(20, trips // 4))
        ]
    return rows, decode_rows


def _num_trips(size_kib: int, trips: int) -> int:
    """Return fewer trips for what takes long, so that every size takes about as long as the first."""
    return max(20, trips * 32 // max(size_kib, 32))


@asynccontextmanager
async def bench_server(nats_url: str | None) -> AsyncIterator[str]:
    """Yield the address of a server: the one that is given, or one that lives as long as the context."""
    if nats_url is not None:
        yield nats_url
        return
    with tempfile.TemporaryDirectory(prefix="broker-pipeline-bench-") as directory:
        async with EmbeddedNats(Path(directory)) as server:
            yield server.url
