"""A batch of a million requests by reference, in front of the demo's model: what it costs a gateway and Redis.

    python -m tests.kit.million_lines --requests 1000000 --answered 3000 --receipt million.json

uploads the file, has it validated, lets so many requests be answered, cancels the batch, and reads both files that are
left of it: each custom id has to stand there once. Half of the pictures are fetched by HTTP, the others are files.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from aiohttp import web
from openai import AsyncOpenAI
from openai.types import Batch

from broker_pipeline import redis_keys
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.pictures import scenes, trained_model
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import parse_cut
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.plan import LocalSettings
from tests.kit.running.batch_drill import as_request, caption_of, write_receipt

_LOOK_S = 0.5
_PICTURES = scenes()[0].path.parent
_GATEWAY = ("--allow-private-urls", "127.0.0.0/8", "--media-dir", str(_PICTURES), "--max-files-mb", "3072")


class Observer:
    """Says how long steps took, and how much memory the gateway had at most by their ends."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.facts: dict[str, dict[str, float]] = {}
        self._cluster = cluster
        self._since = time.monotonic()

    def step(self, name: str) -> None:
        """End a step."""
        pid = self._cluster.processes["gateway-0"].pid
        status = Path(f"/proc/{pid}/status").read_text()
        peak_mb = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
        now = time.monotonic()
        self.facts[name] = {"seconds": round(now - self._since, 1), "gateway_peak_mb": round(peak_mb, 1)}
        print(name, self.facts[name], flush=True)
        self._since = now


@asynccontextmanager
async def picture_site() -> AsyncIterator[str]:
    """Serve the demo's pictures."""
    app = web.Application()
    app.router.add_static("/", _PICTURES)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


def request_lines(num_requests: int, model: str, site: str, num_pad_bytes: int) -> Iterator[bytes]:
    """Yield the lines of the input, each longer by so many bytes than it had to be."""
    names = [scene.path.name for scene in scenes()]
    for index in range(num_requests):
        place = site if index % 2 else _PICTURES.as_uri()
        yield as_request(str(index), f"{place}/{names[index % len(names)]}", model, user="x" * num_pad_bytes)


async def run(directory: Path, num_requests: int, num_answered: int, num_pad_bytes: int) -> dict[str, Any]:
    """Return what was seen."""
    settings = LocalSettings(
        model=await make_artifact(directory, trained_model()),
        stages=parse_cut("", 5),
        data_dir=directory / "run",
        extra_arguments={"gateway": _GATEWAY},
    )
    async with (
        picture_site() as site,
        LocalCluster(settings) as cluster,
        AsyncOpenAI(base_url=f"{cluster.gateway_url}/v1", api_key="none", timeout=600) as client,
        open_redis(cluster.redis_url) as redis,
    ):
        observer = Observer(cluster)
        path = directory / "input.jsonl"
        with path.open("wb") as file:
            model = (await client.models.list()).data[0].id
            file.writelines(request_lines(num_requests, model, site, num_pad_bytes))
        observer.step("written")
        with path.open("rb") as file:
            uploaded = await client.files.create(file=file, purpose="batch")
        observer.step("uploaded")
        batch = await client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        await _until(client, batch.id, lambda now: now.status != "validating")
        observer.step("validated")
        cost = await redis_bytes(redis, settings.namespace, batch.id)
        batch = await _until(client, batch.id, lambda now: _num_completed(now) >= num_answered)
        observer.step("answered")
        await client.batches.cancel(batch.id)
        batch = await _until(client, batch.id, lambda now: now.status not in ("in_progress", "cancelling"))
        observer.step("cancelled")
        found = await _custom_ids(client, batch, num_requests)
        observer.step("read")
    counts = batch.request_counts
    return {
        "num_requests": num_requests,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "status": batch.status,
        "num_answered": counts.completed if counts else 0,
        "redis_bytes_per_request": round(cost / num_requests, 3),
        "steps": observer.facts,
        **found,
    }


async def redis_bytes(redis: RedisClient, namespace: str, batch_id: str) -> int:
    """Return the memory of all that Redis keeps for a batch, but for the jobs under way."""
    keys = [make(namespace, batch_id) for make in (redis_keys.batch, redis_keys.batch_done, redis_keys.batch_offsets)]
    return sum([await redis.memory_usage(key, samples=0) or 0 for key in keys])


async def _until(client: AsyncOpenAI, batch_id: str, is_enough: Any) -> Batch:
    while True:
        if is_enough(batch := await client.batches.retrieve(batch_id)):
            return batch
        await asyncio.sleep(_LOOK_S)


def _num_completed(batch: Batch) -> int:
    return batch.request_counts.completed if batch.request_counts else 0


async def _custom_ids(client: AsyncOpenAI, batch: Batch, num_requests: int) -> dict[str, int]:
    """Count the custom ids that stand once in the output and error files, those that do not, and wrong captions."""
    seen, num_wrong, captions = bytearray(num_requests), 0, [scene.expected for scene in scenes()]
    for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        async with client.files.with_streaming_response.content(file_id) as content:
            async for line in content.iter_lines():
                row = json.loads(line)
                number = int(row["custom_id"])
                seen[number] += 1
                num_wrong += row["error"] is None and caption_of(row) != captions[number % len(captions)]
    return {"num_once": seen.count(1), "num_missing": seen.count(0), "num_wrong": num_wrong}


@click.command()
@click.option("--requests", "num_requests", default=1_000_000, show_default=True, help="Lines of the batch.")
@click.option("--answered", "num_answered", default=3000, show_default=True, help="Answers before it is cancelled.")
@click.option("--pad-bytes", "num_pad_bytes", default=0, show_default=True, help="More bytes of each line.")
@click.option("--receipt", type=click.Path(path_type=Path), help="File for what was seen, as JSON.")
def main(num_requests: int, num_answered: int, num_pad_bytes: int, receipt: Path | None) -> None:
    """Run it and say what was seen."""
    with TemporaryDirectory(prefix="million-") as name:
        seen = asyncio.run(run(Path(name), num_requests, num_answered, num_pad_bytes))
    write_receipt(receipt, seen)
    raise SystemExit(0 if seen["num_once"] == num_requests and not seen["num_wrong"] else 1)


if __name__ == "__main__":
    main()
