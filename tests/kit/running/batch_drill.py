"""A batch of pictures for the demo's model, by OpenAI's client, while parts of the pipeline are killed.

    python -m tests.kit.running.batch_drill --requests 5000

uploads a file of so many lines, creates a batch, kills the gateway that carries it on, the conductor and a stage on the
way, downloads the output, and holds each caption against the one that its picture has to have.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from openai import AsyncOpenAI
from openai.types import Batch

from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.pictures import scenes, trained_model
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import parse_cut
from broker_pipeline.tools.local.plan import LocalSettings
from tests.kit.receipts import write_receipt
from training.prompts import DEFAULT_PROMPT

VICTIMS = ("gateway-0", "conductor-0", "stage-1")
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch."""

    batch: Batch
    captions: dict[str, str]
    """By custom id."""
    repeated: list[str]
    """Custom ids that stand in the output more than once."""
    seconds: float


async def demo_cluster(directory: Path) -> LocalCluster:
    """Return the demo's model in three stages behind two gateways, not started yet."""
    artifact = await make_artifact(directory, trained_model())
    quick = {"conductor": ("--ack-wait-s", "3", "--lease-ttl-s", "3"), "gateway": ("--batch-lease-s", "3")}
    return LocalCluster(
        LocalSettings(
            model=artifact,
            stages=parse_cut("1,2", 5),
            data_dir=directory / "run",
            num_gateways=2,
            drain_s=2.0,
            extra_arguments=quick | {"gateway": (*quick["gateway"], "--max-file-mb", "2048", "--max-files-mb", "4096")},
        )
    )


def expected(num_requests: int) -> dict[str, str]:
    """Return the right caption of each request."""
    shown = scenes()
    return {f"picture-{index}": shown[index % len(shown)].expected or "" for index in range(num_requests)}


def request_lines(num_requests: int, model: str) -> Iterator[bytes]:
    """Yield the lines of the input."""
    urls = ["data:;base64," + base64.b64encode(scene.path.read_bytes()).decode() for scene in scenes()]
    for index in range(num_requests):
        yield _as_request(f"picture-{index}", urls[index % len(urls)], model)


def _as_request(custom_id: str, picture_url: str, model: str) -> bytes:
    """Return a line that asks for the caption of a picture."""
    content = [{"type": "image_url", "image_url": {"url": picture_url}}, {"type": "text", "text": DEFAULT_PROMPT}]
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 48}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line).encode() + b"\n"


async def run_batch(cluster: LocalCluster, directory: Path, num_requests: int) -> Outcome:
    """Run a batch; each of the `VICTIMS` dies when another share of the requests has been answered."""
    started = time.monotonic()
    async with client_of(cluster, 0) as taker, client_of(cluster, 1) as client:
        model = (await client.models.list()).data[0].id
        path = directory / "input.jsonl"
        with path.open("wb") as file:
            file.writelines(request_lines(num_requests, model))
        uploaded = await taker.files.create(file=path, purpose="batch")
        batch = await taker.batches.create(  # who takes it carries it on
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        for number, victim in enumerate(VICTIMS, 1):
            await _until(client, batch.id, number * num_requests // (2 * len(VICTIMS)))
            cluster.processes[victim].kill()
        batch = await _until(client, batch.id, num_requests)
        text = (await client.files.content(batch.output_file_id or "")).text
        rows = [json.loads(line) for line in text.splitlines()]
    names = [row["custom_id"] for row in rows]
    captions = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}
    repeated = sorted(name for name in captions if names.count(name) > 1) if len(names) > len(captions) else []
    return Outcome(batch, captions, repeated, time.monotonic() - started)


def client_of(cluster: LocalCluster, gateway: int) -> AsyncOpenAI:
    """Return a client of one of the gateways."""
    return AsyncOpenAI(base_url=f"{cluster.gateway_urls[gateway]}/v1", api_key="none", max_retries=5)


async def _until(client: AsyncOpenAI, batch_id: str, num_done: int) -> Batch:
    """Wait until so many requests are answered, or the batch has ended where that is all of them."""
    while True:
        batch = await client.batches.retrieve(batch_id)
        counts = batch.request_counts
        if batch.status not in ("validating", "in_progress", "finalizing"):
            return batch
        if counts and counts.total and num_done <= counts.completed < counts.total:
            return batch
        await asyncio.sleep(_LOOK_S)


@click.command()
@click.option("--requests", "num_requests", default=5000, show_default=True, help="Lines of the batch.")
@click.option("--receipt", type=click.Path(path_type=Path), help="File for what was seen, as JSON.")
def main(num_requests: int, receipt: Path | None) -> None:
    """Run the drill and say what came of it."""

    async def run() -> Outcome:
        with TemporaryDirectory(prefix="batch-drill-") as name:
            async with await demo_cluster(Path(name)) as cluster:
                return await run_batch(cluster, Path(name), num_requests)

    outcome = asyncio.run(run())
    right = sum(outcome.captions.get(name) == caption for name, caption in expected(num_requests).items())
    seen = {
        "status": outcome.batch.status,
        "num_requests": num_requests,
        "num_answered": len(outcome.captions),
        "num_right": right,
        "num_repeated": len(outcome.repeated),
        "killed": VICTIMS,
        "seconds": round(outcome.seconds, 1),
    }
    write_receipt(receipt, seen)
    print(f"{outcome.batch.status}: {len(outcome.captions)} of {num_requests} answered, {right} rightly, ", end="")
    print(f"{len(outcome.repeated)} twice; {', '.join(VICTIMS)} killed; {outcome.seconds:.0f} s")
    raise SystemExit(0 if right == num_requests and not outcome.repeated else 1)


if __name__ == "__main__":
    main()
