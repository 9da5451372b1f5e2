"""Limits of keys over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest_asyncio

from broker_pipeline.messages.keys import GatewayKey, KeyLimits
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient
from tests.gateway.conftest import OpenGateway
from tests.kit.waiting import eventually

Open = Callable[..., Awaitable[aiohttp.ClientSession]]


@pytest_asyncio.fixture
async def client(start_gateway: OpenGateway, redis: RedisClient, namespace: str) -> AsyncIterator[Open]:
    """Opens a client with a key of these limits."""
    sessions: list[aiohttp.ClientSession] = []
    async with start_gateway() as (_, url):

        async def open_client(**limits: int) -> aiohttp.ClientSession:
            key = GatewayKey(tenant="a", scopes=("submit", "read"), created_at=1.0, limits=KeyLimits(**limits))
            secret = await GatewayKeys(redis, namespace).create(key)
            sessions.append(aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {secret}"}))
            return sessions[-1]

        yield open_client
        for session in sessions:
            await session.close()


async def submit(http: aiohttp.ClientSession, **sampling: Any) -> tuple[int, Any, dict[str, str]]:
    async with http.post("/v1/jobs", json={"prompt": "How many?", "sampling": sampling}) as answer:
        return answer.status, await answer.json(), {name.lower(): text for name, text in answer.headers.items()}


async def test_answers_say_what_is_left_and_the_last_one_when_to_come_back(client: Open) -> None:
    http = await client(requests_per_minute=2, tokens_per_minute=1000)
    for left, tokens_left in ((1, 798), (0, 596)):
        status, _, headers = await submit(http, max_tokens=100, n=2)
        assert status == 202
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert abs(int(headers["x-ratelimit-remaining-tokens"]) - tokens_left) < 100, "some fill again meanwhile"
        assert headers["x-ratelimit-reset-requests"].endswith("s")
    status, body, headers = await submit(http)
    assert (status, body["error"]["code"], body["error"]["retryable"]) == (429, "rate_limited", True)
    assert 1 <= int(headers["retry-after"]) <= 30
    assert headers["x-ratelimit-remaining-requests"] == "0"
    chat = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
    async with http.post("/v1/chat/completions", json=chat) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (429, "rate_limit_exceeded")
    async with http.get("/v1/jobs") as answer:
        assert answer.status == 200, "looking is free"
        assert not any(name.lower().startswith("x-ratelimit") for name in answer.headers)


async def test_tokens_that_a_key_never_has_are_no_matter_of_waiting(client: Open) -> None:
    http = await client(tokens_per_minute=100)
    status, body, _ = await submit(http, max_tokens=101)
    assert (status, body["error"]["field"]) == (400, "sampling.max_tokens")
    assert (await submit(http, max_tokens=90))[0] == 202
    status, body, headers = await submit(http, max_tokens=90)
    assert (status, body["error"]["code"]) == (429, "rate_limited")
    assert int(headers["retry-after"]) <= 60


async def test_jobs_that_wait_are_bounded_by_tenant(client: Open) -> None:
    http = await client(max_queued=2)
    jobs = [(await submit(http))[1]["job_id"] for _ in range(2)]
    status, body, headers = await submit(http)
    assert (status, body["error"]["code"]) == (429, "rate_limited")
    assert int(headers["retry-after"]) < 120
    async with http.delete(f"/v1/jobs/{jobs[0]}") as answer:
        assert answer.status == 200
    assert (await submit(http))[0] == 202
    assert (await submit(await client()))[0] == 202, "another key of the tenant may have no limit"


async def test_stopping_and_deleting_are_free(client: Open) -> None:
    http = await client(requests_per_minute=4, max_parallel=1)
    job = (await submit(http))[1]["job_id"]
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", b"{}", filename="input.jsonl")
    async with http.post("/v1/files", data=form) as answer:
        file = (await answer.json())["id"]
    order = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    async with http.post("/v1/batches", json=order) as answer:
        batch = (await answer.json())["id"]
    asked = [http.delete(f"/v1/jobs/{job}"), http.delete(f"/v1/responses/resp_{job}")]
    asked += [http.post(f"/v1/batches/{batch}/{action}") for action in ("pause", "resume", "cancel")]
    asked += [http.post(f"/v1/responses/resp_{job}/cancel"), http.delete(f"/v1/files/{file}")]
    for request in asked:
        async with request as answer:
            assert answer.status != 429
            assert not any(name.lower().startswith("x-ratelimit") for name in answer.headers)
    status, _, headers = await submit(http)
    assert (status, headers["x-ratelimit-remaining-requests"]) == (202, "0")


async def test_a_request_is_under_way_until_its_answer_has_ended(client: Open) -> None:
    http = await client(max_parallel=1)

    async def drip() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def upload() -> None:
        async with http.post("/v1/jobs", data=drip(), headers={"Content-Type": "application/json"}):
            pass

    async def is_uploading() -> bool:
        async with http.get("/metrics") as answer:
            return "broker_pipeline_uploads_in_flight 1.0" in await answer.text()

    async def answers(expected: int) -> bool:
        return (await submit(http))[0] == expected

    uploading = asyncio.create_task(upload())
    await eventually(is_uploading)
    assert await answers(429)
    uploading.cancel()
    await asyncio.wait({uploading})
    await eventually(lambda: answers(202))
