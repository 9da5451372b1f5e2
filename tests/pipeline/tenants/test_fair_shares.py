"""Tenants at a real pipeline: a backlog of batch jobs and ten interactive ones, and two of unlike weight."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from broker_pipeline.messages.jobs import JobRecord, Priority
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import PipelineClient, client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

MANY, FEW, MAX_TOKENS = 70, 10, 16


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


@contextmanager
def stopped(client: PipelineClient) -> Iterator[None]:
    """Have nobody take jobs meanwhile, so that all wait at the same time."""
    conductor = client.cluster.processes["conductor-0"]
    conductor.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        conductor.kill(signal.SIGCONT)


async def new_tenure(client: PipelineClient) -> None:
    """Have the conductor start again, and wait until it shows itself."""
    cluster = client.cluster
    async with open_redis(cluster.redis_url) as redis:
        registry = WorkerRegistry(redis, cluster.settings.namespace, cluster.settings.pipeline)
        before = await registry.conductor_status()
        assert before is not None
        cluster.processes["conductor-0"].kill(signal.SIGKILL)

        async def is_there() -> bool:
            status = await registry.conductor_status()
            return status is not None and status.epoch > before.epoch and bool(status.routes)

        await eventually(is_there, timeout_s=60.0)


def begun_in_order(records: list[JobRecord]) -> list[str]:
    """Return whose job was begun first, whose next."""
    return [job.tenant for job in sorted(records, key=lambda job: job.started_at or 0.0)]


async def test_ten_interactive_jobs_pass_a_backlog_of_batch_jobs(
    client: PipelineClient, http: aiohttp.ClientSession
) -> None:
    large, small = await Tenant.of(client, http, "large", 1.0), await Tenant.of(client, http, "small", 1.0)
    with stopped(client):
        ids = [*await large.submit(MANY, "batch"), *await small.submit(FEW, "interactive")]
    records = await client.wait(ids)
    assert {job.status for job in records} == {"succeeded"}
    begun = begun_in_order(records)
    last = max(place for place, tenant in enumerate(begun) if tenant == "small")
    assert last < 2 * FEW, "beside them are those that were taken with the same request, and one in sixteen"


async def test_two_tenants_share_by_their_weights(client: PipelineClient, http: aiohttp.ClientSession) -> None:
    one, three = await Tenant.of(client, http, "one", 1.0), await Tenant.of(client, http, "three", 3.0)
    await new_tenure(client)  # which looks keys up first of all
    with stopped(client):
        ids = [*await one.submit(MANY, "batch"), *await three.submit(MANY, "batch")]
    begun = begun_in_order(await client.wait(ids))
    assert 12 <= begun[16:76].count("one") <= 18, "the first may have been taken before the keys were read"
