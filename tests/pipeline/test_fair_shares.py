"""Tenants at a real pipeline: one has a backlog of batch jobs when another comes with ten interactive ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from broker_pipeline.messages.jobs import JobRecord, Priority
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

MANY, FEW, MAX_TOKENS = 110, 10, 32


@dataclass(frozen=True)
class Tenant:
    """Somebody with a key."""

    client: PipelineClient
    http: aiohttp.ClientSession
    key: str

    @classmethod
    async def of(cls, client: PipelineClient, http: aiohttp.ClientSession, name: str, weight: float) -> Tenant:
        async with open_redis(client.cluster.redis_url) as redis:
            key = GatewayKey(tenant=name, scopes=("submit", "read"), created_at=1.0, weight=weight)
            return cls(client, http, await GatewayKeys(redis, client.cluster.settings.namespace).create(key))

    async def submit(self, num_jobs: int, priority: Priority) -> list[str]:
        return list(await asyncio.gather(*(self._submit(priority) for _ in range(num_jobs))))

    async def _submit(self, priority: Priority) -> str:
        sampling = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
        body = {"prompt": "Tell me more.", "priority": priority, "sampling": sampling}
        url, headers = f"{self.client.cluster.gateway_url}/v1/jobs", {"Authorization": f"Bearer {self.key}"}
        async with self.http.post(url, json=body, headers=headers) as answer:
            said = await answer.json()
            assert answer.status == 202, said
            return str(said["job_id"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    cluster: LocalCluster = tiny_cluster(tmp_path_factory.mktemp("shares") / "run", DENSE, "2")
    async with cluster, client_of(cluster) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=16)) as session:
        yield session


def in_turn(records: list[JobRecord]) -> list[JobRecord]:
    return sorted(records, key=lambda job: job.started_at or float("inf"))


async def test_ten_interactive_jobs_do_not_wait_for_a_backlog_of_batch_jobs(
    client: PipelineClient, http: aiohttp.ClientSession
) -> None:
    large, small = await Tenant.of(client, http, "large", 1.0), await Tenant.of(client, http, "small", 1.0)
    backlog = await large.submit(MANY, "batch")
    await client.wait_any(backlog, 5)
    mine = await client.wait(await small.submit(FEW, "interactive"))
    assert {job.status for job in mine} == {"succeeded"}
    others = await client.records(backlog)
    since, until = mine[0].created_at, max(job.started_at or 0.0 for job in mine)
    assert sum(since < (job.started_at or 0.0) < until for job in others) <= FEW
    assert sum(job.status == "queued" for job in others) > FEW, "there is a backlog still"
    assert {job.status for job in await client.wait(backlog)} == {"succeeded"}


async def test_two_tenants_share_by_their_weights(client: PipelineClient, http: aiohttp.ClientSession) -> None:
    one, three = await Tenant.of(client, http, "one", 1.0), await Tenant.of(client, http, "three", 3.0)
    ids = [*await one.submit(MANY, "batch"), *await three.submit(MANY, "batch")]
    since = max(job.created_at for job in await client.records(ids))
    records = in_turn(await client.wait(ids))
    both_wait = [job.tenant for job in records if (job.started_at or 0.0) > since][:60]
    assert 12 <= both_wait.count("one") <= 18
