"""A Parquet of tiny pictures captioned into shards of Parquet, while client, gateway and a stage are killed.

    python -m tests.kit.table_drill --rows 1000000

The model is the smallest that there is. Pictures of one colour have one caption, and no two have the same bytes. At the
end each row has to be in the shards once, with the caption of its colour, in the order of the source.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.receipts import write_receipt
from tests.kit.running.clusters import DENSE, tiny_cluster

NUM_COLOURS = 16
_ROWS_PER_GROUP = 10_000
_LOOK_S = 0.2
_ASKED = ("--prompt", "?", "--max-tokens", "2", "--temperature", "0", "--no-guards", "--concurrency", "256")


@dataclass(slots=True)
class Seen:
    """What was seen of the client's processes."""

    peak_mb: float = 0.0
    killed_at: dict[str, int] = field(default_factory=dict)
    """Lines of the log when each was killed."""
    num_bytes: int = 0
    """Of the log, read so far."""
    num_lines: int = 0

    def look(self, log: Path) -> int:
        """Return how many lines the log has."""
        if log.exists():
            with log.open("rb") as file:
                file.seek(self.num_bytes)
                while block := file.read(1 << 20):
                    self.num_bytes += len(block)
                    self.num_lines += block.count(b"\n")
        return self.num_lines


def write_table(path: Path, num_rows: int) -> None:
    """Write so many rows: `number`, and `image` as bytes, of which no two are the same."""
    pictures = [_png(colour) for colour in range(NUM_COLOURS)]
    schema = pa.schema({"number": pa.int64(), "image": pa.binary()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, _ROWS_PER_GROUP):
            numbers = list(range(start, min(start + _ROWS_PER_GROUP, num_rows)))
            content = [pictures[number % NUM_COLOURS] + b"%d" % number for number in numbers]
            writer.write_table(pa.table({"number": numbers, "image": content}, schema=schema))


def _png(colour: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (colour * 15, 255 - colour * 15, 90)).save(buffer, "PNG")
    return buffer.getvalue()


async def run(directory: Path, num_rows: int) -> dict[str, Any]:
    """Return what was seen; what is wrong is in it."""
    write_table(directory / "table.parquet", num_rows)
    seen, started = Seen(), time.monotonic()
    async with tiny_cluster(directory / "run", DENSE, "2", restarts=True) as cluster:
        code = await _caption(cluster, directory, num_rows, seen)
        seconds = time.monotonic() - started
    return {
        "num_rows": num_rows,
        "exit_code": code,
        "seconds": round(seconds, 1),
        "rows_per_s": round(num_rows / seconds, 1),
        "client_peak_mb": round(seen.peak_mb, 1),
        "killed_at": seen.killed_at,
        **found(directory, num_rows),
    }


async def _caption(cluster: LocalCluster, directory: Path, num_rows: int, seen: Seen) -> int:
    """Caption to the end, through a death of each: the client at a quarter, gateway and stage at a half and later."""
    async with _client(cluster, directory, seen) as client:
        seen.killed_at["client"] = await _until(directory, num_rows // 4, client, seen)
        client.kill()
    async with _client(cluster, directory, seen) as client:
        for name, at in (("gateway-0", num_rows // 2), ("stage-1", 3 * num_rows // 4)):
            seen.killed_at[name] = await _until(directory, at, client, seen)
            cluster.processes[name].process.kill()
        return await client.wait()


@asynccontextmanager
async def _client(cluster: LocalCluster, directory: Path, seen: Seen) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "broker_pipeline", "caption", "table.parquet", "--gateway", cluster.gateway_url]
    with (directory / "client.log").open("ab") as log:
        client = await asyncio.create_subprocess_exec(
            *command, *_ASKED, "--to", "shards/out-%05d.parquet", cwd=directory, stdout=log, stderr=log
        )
    watching = asyncio.create_task(_watch(client.pid, seen))
    try:
        yield client
        await client.wait()
    finally:
        watching.cancel()
        if client.returncode is None:
            client.kill()
            await client.wait()


async def _watch(pid: int, seen: Seen) -> None:
    """Note the most memory that a process has had."""
    while True:
        try:
            status = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240 - it never blocks
        except OSError:
            return
        if peak := status.partition("VmHWM:")[2].split():
            seen.peak_mb = max(seen.peak_mb, int(peak[0]) * 1024 / 1e6)
        await asyncio.sleep(_LOOK_S)


async def _until(directory: Path, num: int, client: asyncio.subprocess.Process, seen: Seen) -> int:
    """Wait until the log has so many lines; return how many it has then."""
    while seen.look(directory / "captions.jsonl") < num:
        if client.returncode is not None:
            raise RuntimeError((directory / "client.log").read_text()[-2000:])
        await asyncio.sleep(_LOOK_S)
    return seen.num_lines


def found(directory: Path, num_rows: int) -> dict[str, Any]:
    """Count rows of the shards: there once, missing, out of order, with another caption than others of their colour."""
    times, captions = bytearray(num_rows), dict[int, str]()
    num_wrong = num_out_of_order = 0
    last = -1
    for row in _rows(directory):
        number, caption = row["number"], row["caption"]
        times[number] += 1
        num_out_of_order += number <= last
        last = number
        num_wrong += captions.setdefault(number % NUM_COLOURS, caption) != caption
    return {
        "num_once": times.count(1),
        "num_missing": times.count(0),
        "num_out_of_order": num_out_of_order,
        "num_wrong": num_wrong,
        "num_captions": len(set(captions.values())),
    }


def _rows(directory: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(directory.glob("shards/*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["number", "caption"]):
                yield from batch.to_pylist()


@click.command()
@click.option("--rows", "num_rows", default=1_000_000, show_default=True, help="Rows of the table.")
@click.option("--receipt", type=click.Path(path_type=Path), help="File for what was seen, as JSON.")
def main(num_rows: int, receipt: Path | None) -> None:
    """Run it and say what was seen."""
    with TemporaryDirectory(prefix="table-") as name:
        seen = asyncio.run(run(Path(name), num_rows))
    write_receipt(receipt, seen)
    print(json.dumps(seen))
    raise SystemExit(0 if seen["num_once"] == num_rows and not seen["num_wrong"] else 1)


if __name__ == "__main__":
    main()
