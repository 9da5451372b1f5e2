"""Tenants do not see each other: jobs, lists, streams, idempotency keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest_asyncio

from broker_pipeline.errors import Failure
from broker_pipeline.messages.keys import GatewayKey, Scope
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from tests.gateway.conftest import OpenGateway


@dataclass(frozen=True)
class Client:
    """Somebody with a key."""

    http: aiohttp.ClientSession
    secret: str

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.secret}", **more.pop("headers", {})}
        async with self.http.request(method, path, headers=headers, **more) as answer:
            return answer.status, await answer.json() if answer.content_type == "application/json" else None

    async def submit(self, text: str, key: str = "") -> dict[str, Any]:
        headers = {"Idempotency-Key": key} if key else {}
        status, record = await self.ask("POST", "/v1/jobs", json={"prompt": text}, headers=headers)
        assert status == 202, record
        return dict(record)

    async def listed(self, query: str = "") -> list[str]:
        status, page = await self.ask("GET", f"/v1/jobs{query}")
        assert status == 200
        return [job["job_id"] for job in page["jobs"]]


@dataclass(frozen=True)
class Three:
    alice: Client
    bob: Client
    operator: Client


@pytest_asyncio.fixture
async def three(start_gateway: OpenGateway, redis: RedisClient, namespace: str) -> AsyncIterator[Three]:
    keys = GatewayKeys(redis, namespace)

    async def secret(tenant: str, *scopes: Scope) -> str:
        return await keys.create(GatewayKey(tenant=tenant, scopes=scopes, created_at=1.0))

    secrets = [
        await secret("alice", "submit", "read"),
        await secret("bob", "submit", "read"),
        await secret("o", "operate"),
    ]
    async with start_gateway() as (_, url), aiohttp.ClientSession(base_url=url) as http:
        yield Three(*(Client(http, each) for each in secrets))


async def test_anothers_job_is_not_there(three: Three) -> None:
    job = (await three.alice.submit("whose?"))["job_id"]
    for method, path in (("GET", ""), ("GET", "?wait_s=1"), ("GET", "/events"), ("POST", "/retry"), ("DELETE", "")):
        mine = await three.bob.ask(method, f"/v1/jobs/{job}{path}")
        nobodys = await three.bob.ask(method, f"/v1/jobs/no-such-job{path}")
        assert (mine[0], nobodys[0]) == (404, 404), (method, path)
        assert mine[1]["error"]["message"] == nobodys[1]["error"]["message"].replace("no-such-job", job)
    assert (await three.alice.ask("GET", f"/v1/jobs/{job}"))[1]["tenant"] == "alice"
    assert (await three.operator.ask("GET", f"/v1/jobs/{job}"))[0] == 200
    assert (await three.alice.ask("DELETE", f"/v1/jobs/{job}"))[0] == 200
    assert (await three.bob.ask("POST", f"/v1/jobs/{job}/retry"))[0] == 404
    assert (await three.operator.ask("POST", f"/v1/jobs/{job}/retry"))[1]["tenant"] == "alice"


async def test_a_list_shows_ones_own_by_status_and_page(three: Three) -> None:
    hers = [(await three.alice.submit(f"a{index}"))["job_id"] for index in range(3)][::-1]
    his = (await three.bob.submit("b"))["job_id"]
    assert await three.alice.listed() == hers
    assert await three.bob.listed() == [his]
    assert set(await three.operator.listed()) == {*hers, his}
    _, page = await three.alice.ask("GET", "/v1/jobs?limit=2")
    assert await three.alice.listed(f"?limit=2&after={page['next']}") == hers[2:]
    await three.alice.ask("DELETE", f"/v1/jobs/{hers[1]}")
    assert await three.alice.listed("?status=cancelled") == [hers[1]]
    assert await three.alice.listed("?status=queued") == [hers[0], hers[2]]
    assert await three.bob.listed("?status=cancelled") == []


async def test_an_idempotency_key_is_ones_own(three: Three) -> None:
    first = await three.alice.submit("a", key="k")
    assert (await three.alice.submit("a", key="k"))["job_id"] == first["job_id"]
    assert (await three.bob.submit("another question", key="k"))["job_id"] != first["job_id"]


async def test_a_search_and_rates_are_for_those_whom_they_concern(
    three: Three, redis: RedisClient, namespace: str
) -> None:
    store = JobStore(redis, namespace)
    spec = await store.spec((await three.alice.submit("whose?"))["job_id"])
    attempt = await store.begin_attempt(spec, "f" * 64)
    failure = Failure("compute", "a purple unicorn", retryable=False)
    assert await store.finish(spec.job_id, attempt.number, "failed", error=failure)
    found = [await who.listed("?search=unicorn+PURPLE") for who in (three.alice, three.bob, three.operator)]
    assert found == [[spec.job_id], [], [spec.job_id]]
    told = [(await who.ask("GET", "/v1/caller"))[1] for who in (three.alice, three.operator)]
    assert told[0] == {"tenant": "alice", "scopes": ["read", "submit"], "has_key": True}
    assert told[1] == {"tenant": "", "scopes": ["operate"], "has_key": True}
    assert (await three.alice.ask("GET", "/v1/rates"))[1] == {"interval_s": 10.0, "samples": []}


async def test_many_jobs_are_waited_for_and_made_by_their_tenant_alone(three: Three) -> None:
    hers = (await three.alice.submit("whose?"))["job_id"]
    his = (await three.bob.submit("whose?"))["job_id"]
    status, said = await three.bob.ask("POST", "/v1/jobs/wait", json={"job_ids": [hers, his, "no-such"], "wait_s": 30})
    assert (status, said) == (200, {"jobs": [], "unknown": [hers, "no-such"]}), "at once, as of one that never was"
    await three.bob.ask("DELETE", f"/v1/jobs/{his}")
    status, said = await three.bob.ask("POST", "/v1/jobs/wait", json={"job_ids": [his]})
    assert [job["status"] for job in said["jobs"]] == ["cancelled"]
    status, said = await three.bob.ask("POST", "/v1/jobs/bulk", json={"jobs": [{"prompt": "mine"}]})
    assert said["jobs"][0]["job"]["tenant"] == "bob"
