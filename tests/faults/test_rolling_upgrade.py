"""Two releases of one contract version in one pipeline: its services are replaced one by one while jobs run."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from broker_pipeline import redis_keys
from broker_pipeline.client.operator_token import token_for
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.service import LocalService
from tests.kit.running.drill import crowd_questions, decoding, fault_cluster, log_lines, status_when, undisturbed
from tests.kit.running.next_release import VERSION, next_release
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

QUESTIONS = crowd_questions(6, 60)
WORKERS = {
    "next-a": ("stage", "--blocks", "0:3", "--kv-tokens", "16384"),
    "next-b": ("stage", "--blocks", "3:6", "--kv-tokens", "16384"),
    "next-vision": ("vision",),
}
OF_TODAY = {"next-a": "stage-0", "next-b": "stage-1", "next-vision": "vision-0"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    cluster = fault_cluster(tmp_path_factory.mktemp("upgrade") / "run", "3")
    async with cluster, client_of(cluster) as opened:
        yield opened


def service(client: PipelineClient, directory: Path, env: dict[str, str], name: str, *arguments: str) -> LocalService:
    """A service of the next release that joins the pipeline, as one that somebody starts on another host."""
    cluster = client.cluster
    more = ["--model", str(cluster.settings.model), "--log-format", "json"]
    more += ["--nats-url", cluster.nats_url, "--redis-url", cluster.redis_url]
    more += [] if name == "next-conductor" else ["--name", name, "--device", "cpu", "--threads", "1"]
    log, ready = directory / f"{name}.log", directory / f"{name}.ready"
    return LocalService(name, [*arguments, *more], log_path=log, ready_path=ready, env=env, start_timeout_s=90)


async def test_workers_and_conductor_are_replaced_one_by_one_while_jobs_run(
    client: PipelineClient, tmp_path: Path
) -> None:
    cluster, env = client.cluster, next_release(tmp_path / "next")
    expected = await undisturbed(client, QUESTIONS)
    newer = {name: service(client, tmp_path, env, name, *what) for name, what in WORKERS.items()}
    newer["next-conductor"] = service(client, tmp_path, env, "next-conductor", "conductor")
    try:
        await asyncio.gather(*(each.start() for each in newer.values()))
        status = await status_when(cluster, lambda status: len(status.conductor.routes) == 2, what="a second route")
        assert {worker.version for worker in status.workers if worker.worker.startswith("next-")} == {VERSION}
        assert len({worker.version for worker in status.workers}) == 2
        assert not status.conductor.refused  # type: ignore[union-attr]
        async with open_redis(cluster.redis_url) as redis:
            record = await redis.get(redis_keys.worker(cluster.settings.namespace, "main", "next-a"))
        assert b'"of_the_next_release":7' in (record or b"")
        for name, today in OF_TODAY.items():
            async with decoding(client, QUESTIONS, 5, at_once=4) as crowd:
                await drain(client, today)
                assert await crowd.finish() == expected, f"with {name} beside or in place of {today}"
        async with decoding(client, QUESTIONS, 5, at_once=4) as crowd:
            cluster.processes["conductor-0"].kill(signal.SIGTERM)
            assert await crowd.finish() == expected, "today's gateway and the next release's conductor"
        assert log_lines(newer["next-conductor"].log_path, event="tenure_begins")
        assert await undisturbed(client, QUESTIONS) == expected, "today's gateway in front of the next release"
        assert (await client.counts())["failed"] == 0
    finally:
        await asyncio.gather(*(each.stop(5) for each in newer.values()))


async def drain(client: PipelineClient, worker: str) -> None:
    url = f"{client.cluster.gateway_url}/v1/workers/{worker}/drain"
    headers = {"Authorization": f"Bearer {token_for(url)}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url) as answer:
        assert answer.status == 202, await answer.text()
