"""The disks of NATS and Redis fill up: what cannot be kept is refused and said, what was accepted runs in the end.

The disks are small file systems in memory, which takes root; they are filled to the last byte.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from broker_pipeline.client.operator_token import token_for
from tests.kit.running.drill import crowd_questions, decoding, fault_cluster, undisturbed
from tests.kit.running.pipeline_client import PipelineClient, client_of
from tests.kit.running.small_disk import needs_mounting, small_disk
from tests.kit.waiting import eventually

pytestmark = [
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
    needs_mounting,
]

QUESTIONS = crowd_questions(12, 100)
ROOM = ("--max-queue-mb", "16", "--max-media-mb", "128")
LONG_PROMPT = "word " * 100
"""Some kilobytes, so that a page which is half full takes no more than a few."""


@dataclass(frozen=True)
class Drill:
    """A running pipeline on small disks, and what its crowd says when nothing happens."""

    client: PipelineClient
    disks: Path
    expected: list[list[int]]


@contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Leave not a byte on a disk until the end of the context."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drill(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    run = tmp_path_factory.mktemp("disks") / "run"
    with small_disk(run / "nats", "256m"), small_disk(run / "redis", "64m"):
        cluster = fault_cluster(run, "3", extra_arguments={"gateway": ROOM})
        async with cluster, client_of(cluster) as client:
            yield Drill(client, run, await undisturbed(client, QUESTIONS))


async def test_redis_has_no_room_and_gets_some(drill: Drill) -> None:
    client = drill.client
    redis = client.cluster.processes["redis"]
    async with decoding(client, QUESTIONS, 10, at_once=6) as crowd:
        with filled(drill.disks / "redis"):
            refusal = await until_refused(client)
            assert (refusal["code"], refusal["retryable"]) == ("state", True)
            checks = await readiness(client)
            assert checks["redis"] != "ok"
            await eventually(lambda: "append-only file could not be written" in redis.detail)
            assert str(drill.disks / "redis") in redis.detail
        mended_at = time.time()
        accepted = await until_accepted(client)
        print(f"\nRedis: takes jobs {time.time() - mended_at:.1f} s after there was room again")
        assert await crowd.finish() == drill.expected, "nothing that was accepted is lost"
    [record] = await client.wait([accepted])
    assert record.status == "succeeded"
    await until_ready(client)


async def test_jetstream_has_no_room_and_is_started_again_once_there_is_some(drill: Drill) -> None:
    client = drill.client
    nats = client.cluster.processes["nats"]
    async with decoding(client, QUESTIONS, 10, at_once=6) as crowd:
        with filled(drill.disks / "nats"):
            refusal = await until_refused(client)
            assert refusal["code"] in ("request_timeout", "transport", "queue_full")
            assert refusal["retryable"]
            checks = await readiness(client)
            assert "restart" in checks["nats"]
            await eventually(lambda: "no space left" in nats.detail)
            assert str(drill.disks / "nats") in nats.detail
            assert nats.num_restarts == 0, "which is of no use yet"
        mended_at = time.time()
        accepted = await until_accepted(client)
        assert nats.num_restarts == 1
        print(f"\nJetStream: takes jobs {time.time() - mended_at:.1f} s after there was room again")
        assert await crowd.finish() == drill.expected, "nothing that was accepted is lost"
    [record] = await client.wait([accepted])
    assert record.status == "succeeded"
    await until_ready(client)
    await client.wait_empty()


async def until_refused(client: PipelineClient) -> dict[str, Any]:
    """Submit until the answer is a refusal, and return it; what is accepted meanwhile has to run like all else."""
    for _ in range(40):
        status, answer = await try_submit(client)
        if status != 202:
            assert status in (429, 503), answer
            return answer["error"]
    pytest.fail("a full disk took 40 jobs")


async def until_accepted(client: PipelineClient) -> str:
    """Submit until a job is accepted, as a client would that takes `retryable` for an answer."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status, answer = await try_submit(client)
        if status == 202:
            return str(answer["job_id"])
        assert answer["error"]["retryable"], answer
    pytest.fail(f"still refused after 30 s: {answer}")


async def try_submit(client: PipelineClient) -> tuple[int, dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": LONG_PROMPT}], "sampling": {"max_tokens": 4}}
    url = f"{client.cluster.gateway_url}/v1/jobs"
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as answer:
        return answer.status, await answer.json()


async def readiness(client: PipelineClient) -> dict[str, str]:
    url = client.cluster.gateway_url
    headers = {"Authorization": f"Bearer {token_for(url)}"}
    async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz", headers=headers) as answer:
        return (await answer.json())["checks"]


async def until_ready(client: PipelineClient) -> None:
    """Wait until the gateway finds nothing wrong: workers are taken back one by one, and shown once a second."""

    async def is_ready() -> bool:
        return set((await readiness(client)).values()) == {"ok"}

    await eventually(is_ready)
