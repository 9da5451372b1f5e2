"""Draining workers over real HTTP, with workers that speak the contract."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from broker_pipeline import subjects
from broker_pipeline.messages.control import DrainReply, DrainRequest
from broker_pipeline.messages.workers import Role, WorkerRecord
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.wire.transport import Transport
from tests.gateway.conftest import OPERATOR_TOKEN

OPERATOR = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}


def worker(namespace: str, name: str, role: Role = "stage") -> WorkerRecord:
    root = subjects.worker_root(namespace, "main", role, name, "i1")
    return WorkerRecord(worker=name, instance="i1", role=role, pipeline="main", subject=root)


async def drained(http: aiohttp.ClientSession, name: str) -> tuple[int, dict[str, Any]]:
    async with http.post(f"/v1/workers/{name}/drain", headers=OPERATOR) as answer:
        return answer.status, await answer.json()


async def test_the_worker_is_asked_and_its_answer_shown(
    http: aiohttp.ClientSession, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    record = worker(namespace, "s1")
    await WorkerRegistry(redis, namespace, "main").register(record)
    async with transport.subscribe(subjects.drain(record.subject), DrainRequest) as requests:

        async def answer() -> None:
            message = await anext(aiter(requests))
            await message.respond(DrainReply(record=record))

        answering = asyncio.ensure_future(answer())
        status, shown = await drained(http, "s1")
        await answering
    assert (status, shown["worker"], shown["instance"]) == (202, "s1", "i1")


async def test_a_worker_that_is_not_there_is_named_with_those_that_are(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str
) -> None:
    await WorkerRegistry(redis, namespace, "main").register(worker(namespace, "s1"))
    status, shown = await drained(http, "s2")
    assert (status, shown["error"]["code"], shown["error"]["field"]) == (404, "worker_not_found", "worker")
    assert "there are: s1" in shown["error"]["message"]


async def test_a_worker_that_does_not_answer_is_said_so(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str
) -> None:
    await WorkerRegistry(redis, namespace, "main").register(worker(namespace, "s1"))
    status, shown = await drained(http, "s1")
    assert (status, shown["error"]["code"]) == (404, "worker_not_found")
    assert "does not answer" in shown["error"]["message"]


async def test_only_workers_are_drained(http: aiohttp.ClientSession, redis: RedisClient, namespace: str) -> None:
    await WorkerRegistry(redis, namespace, "main").register(worker(namespace, "c1", "conductor"))
    status, shown = await drained(http, "c1")
    assert (status, shown["error"]["field"]) == (400, "worker")
