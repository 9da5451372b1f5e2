"""What operators and their tools ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker_pipeline import redis_keys
from broker_pipeline.messages.keys import GatewayKey, Scope
from broker_pipeline.messages.status import ConductorStatus, RouteStatus, StageStatus, VisionStatus, WorkerTotals
from broker_pipeline.messages.workers import BlockRange, WorkerRecord
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.subjects import worker_root
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from gateway.settings import GatewaySettings
from tests.gateway.api.native.test_jobs import accepted, form
from tests.gateway.conftest import OPERATOR_TOKEN, OpenGateway
from tests.kit.acting.conductor import ActingConductor
from tests.kit.waiting import eventually

WHOLE = BlockRange(start=0, stop=4)


def conductor_status(**changes: Any) -> ConductorStatus:
    status = ConductorStatus(
        instance="c1",
        epoch=3,
        updated_at=1.0,
        uptime_s=2.0,
        fingerprint="f",
        routes=(RouteStatus(workers=("s0",), blocks=(WHOLE,), num_sessions=1, num_in_flight=1),),
        missing_blocks=(),
        stages=(
            StageStatus(
                worker="s0",
                instance="j",
                blocks=WHOLE,
                state="ready",
                kv_capacity_tokens=9,
                kv_used_tokens=1,
                busy=0.75,
                bubble=0.125,
                totals=WorkerTotals(busy_s=90.0, bubble_s=20.0, queue_s=1.5),
            ),
        ),
        vision=(VisionStatus(worker="v0", instance="i", state="ready", num_preparing=0, busy=0.5),),
        refused=(),
        waits_for=None,
        num_sessions={"running": 1},
        num_jobs_waiting=0,
        tokens_per_s=12.5,
        captions_per_s=0.25,
        num_finished={"succeeded": 1},
        num_replays=0,
        num_uncommitted_tokens=0,
    )
    return msgspec.structs.replace(status, **changes)


async def show(redis: RedisClient, namespace: str, status: ConductorStatus) -> None:
    await redis.set(redis_keys.status(namespace, "main"), msgspec.json.encode(status), ex=60)


async def get(http: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with http.get(path, headers={"Authorization": f"Bearer {OPERATOR_TOKEN}"}) as answer:
        return answer.status, await answer.json()


async def test_the_process_lives(http: aiohttp.ClientSession) -> None:
    assert await get(http, "/healthz") == (200, {"status": "ok"})


async def test_ready_means_that_jobs_will_be_run(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str
) -> None:
    status, body = await get(http, "/readyz")
    assert (status, body["ready"], body["checks"]["route"]) == (503, False, "no conductor is active")
    await show(redis, namespace, conductor_status(routes=(), missing_blocks=(BlockRange(start=2, stop=4),)))
    status, body = await get(http, "/readyz")
    assert (status, body["checks"]["route"]) == (503, "no ready stage holds blocks 2 to 3")
    await show(redis, namespace, conductor_status(vision=()))
    assert (await get(http, "/readyz"))[0] == 503
    await show(redis, namespace, conductor_status())
    status, body = await get(http, "/readyz")
    assert (status, body["ready"], set(body["checks"].values())) == (200, True, {"ok"})


async def test_only_operators_are_told_why(start_gateway: OpenGateway, redis: RedisClient, namespace: str) -> None:
    keys = GatewayKeys(redis, namespace)
    scopes: tuple[Scope, ...] = ("submit", "read", "operate")
    secrets = {each: await keys.create(GatewayKey(tenant=each, scopes=(each,), created_at=1.0)) for each in scopes}
    secrets |= {"nobody": "", "stranger": "bp-unknown", "token": OPERATOR_TOKEN}
    async with start_gateway() as (_, url), aiohttp.ClientSession(base_url=url) as http:
        for holder, secret in secrets.items():
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            async with http.get("/readyz", headers=headers) as answer:
                body = await answer.json()
                assert (answer.status, body["ready"]) == (503, False), holder
                assert ("checks" in body) == (holder in ("operate", "token")), holder
        await show(redis, namespace, conductor_status())
        async with http.get("/readyz") as answer:
            assert (answer.status, await answer.json()) == (200, {"ready": True})


async def out_of_memory(redis: RedisClient) -> None:
    await redis.config_set("maxmemory", 1)


async def replica(redis: RedisClient) -> None:
    await redis.replicaof("127.0.0.1", "1")


async def without_replicas(redis: RedisClient) -> None:
    await redis.config_set("min-replicas-to-write", 1)


async def unable_to_save(redis: RedisClient) -> None:
    """Its background save fails, as on a disk without room."""
    await redis.config_set("rdb-key-save-delay", 10_000_000)
    await redis.set("k", "v")
    await redis.config_set("save", "1 1")
    await redis.bgsave()
    for process in psutil.Process((await redis.info("server"))["process_id"]).children():
        process.kill()

    async def has_failed() -> bool:
        return (await redis.info("persistence"))["rdb_last_bgsave_status"] == "err"

    await eventually(has_failed)


@pytest.mark.parametrize(
    ("refuse", "reason"),
    [
        (out_of_memory, "maxmemory"),
        (replica, "read only replica"),
        (without_replicas, "Not enough good replicas"),
        (unable_to_save, "MISCONF"),
    ],
)
async def test_not_ready_while_redis_refuses_writes(
    start_gateway: OpenGateway,
    settings: GatewaySettings,
    own_redis: EmbeddedRedis,
    refuse: Callable[[RedisClient], Awaitable[None]],
    reason: str,
) -> None:
    common = msgspec.structs.replace(settings.common, redis_url=own_redis.url)
    async with (
        start_gateway(common=common) as (_, url),
        aiohttp.ClientSession(base_url=url) as http,
        open_redis(own_redis.url) as own,
    ):
        assert (await get(http, "/readyz"))[1]["checks"]["redis"] == "ok"
        await refuse(own)
        status, body = await get(http, "/readyz")
        assert (status, body["ready"]) == (503, False)
        assert reason in body["checks"]["redis"]


async def test_status_shows_workers_conductor_queue_and_jobs(
    http: aiohttp.ClientSession, conductor: ActingConductor, redis: RedisClient, namespace: str, jpeg: bytes
) -> None:
    _, body = await get(http, "/v1/status")
    assert (body["workers"], body["conductor"]) == ([], None)
    root = worker_root(namespace, "main", "stage", "s0", "i0")
    record = WorkerRecord(
        worker="s0", instance="i0", role="stage", pipeline="main", subject=root, blocks=WHOLE, kv_capacity_tokens=100
    )
    await WorkerRegistry(redis, namespace, "main").register(record)
    await show(redis, namespace, conductor_status())
    for _ in range(3):
        await accepted(http, data=form(jpeg))
    delivery = await conductor.take()
    await conductor.begin(delivery.spec)
    status, body = await get(http, "/v1/status")
    assert status == 200
    assert [worker["worker"] for worker in body["workers"]] == ["s0"]
    assert body["conductor"]["routes"][0]["workers"] == ["s0"]
    assert body["queue"] == {"num_waiting": 2, "num_in_progress": 1}
    assert (body["jobs"]["queued"], body["jobs"]["running"]) == (2, 1)


async def metrics(http: aiohttp.ClientSession) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    async with http.get("/metrics") as answer:
        assert answer.status == 200
        text = await answer.text()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value for each in families for sample in each.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"broker_pipeline_{name}", frozenset(labels.items())


async def test_metrics(http: aiohttp.ClientSession, redis: RedisClient, namespace: str, jpeg: bytes) -> None:
    await show(redis, namespace, conductor_status())
    job = await accepted(http, data=form(jpeg), headers={"Idempotency-Key": "k"})
    await accepted(http, data=form(jpeg), headers={"Idempotency-Key": "k"})
    await get(http, f"/v1/jobs/{job['job_id']}")
    await get(http, "/v1/jobs/unknown")
    async with http.post("/v1/jobs", json={}) as answer:
        assert answer.status == 400
    values = await metrics(http)
    assert values[key("http_requests_total", method="GET", route="/v1/jobs/{job_id}", status="200")] == 1
    assert values[key("transport_reconnects_total", process="gateway")] == 0
    assert values[key("http_requests_total", method="GET", route="/v1/jobs/{job_id}", status="404")] == 1
    assert values[key("jobs_submitted_total", outcome="accepted")] == 1
    assert values[key("jobs_submitted_total", outcome="repeated")] == 1
    assert values[key("jobs_submitted_total", outcome="invalid_request")] == 1
    assert values[key("jobs", status="queued")] == 1
    assert values[key("queue_jobs", state="waiting")] == 1
    assert values[key("tokens_per_second")] == 12.5
    assert values[key("stage_busy", worker="s0")] == 0.75
    assert values[key("stage_bubble", worker="s0")] == 0.125
    assert values[key("stage_busy_seconds_total", worker="s0")] == 90.0
    assert values[key("stage_bubble_seconds_total", worker="s0")] == 20.0
    assert values[key("vision_busy", worker="v0")] == 0.5
    assert values[key("media_bytes_total")] == 2 * len(jpeg)
    assert values[key("http_request_seconds_count", route="/v1/jobs")] == 3
    assert values[key("http_requests_in_flight")] == 1  # this very one
    assert values[key("up")] == 1
    assert values[key("redis_memory_used")] == 0, "it has no limit"
    await redis.config_set("maxmemory", 10 * (await redis.info("memory"))["used_memory"])
    try:
        assert 0.05 < (await metrics(http))[key("redis_memory_used")] < 0.2
    finally:
        await redis.config_set("maxmemory", 0)


async def test_a_gateway_without_its_servers_says_so_and_comes_back(
    start_gateway: OpenGateway, settings: GatewaySettings, own_nats: EmbeddedNats, own_redis: EmbeddedRedis, jpeg: bytes
) -> None:
    common = msgspec.structs.replace(settings.common, nats_url=own_nats.url, redis_url=own_redis.url)
    async with start_gateway(common=common) as (_, url), aiohttp.ClientSession(base_url=url) as http:
        job = await accepted(http, data=form(jpeg))
        await own_nats.stop()
        await own_redis.stop()
        assert (await get(http, "/healthz"))[0] == 200
        status, body = await get(http, "/readyz")
        assert status == 503
        assert body["checks"]["nats"] != "ok"
        assert body["checks"]["redis"] != "ok"
        assert (await metrics(http))[key("up")] == 0
        for request in (http.get(f"/v1/jobs/{job['job_id']}"), http.post("/v1/jobs", data=form(jpeg))):
            async with request as answer:
                assert (answer.status, (await answer.json())["error"]["retryable"]) == (503, True)
                assert int(answer.headers["Retry-After"]) >= 1
        await own_redis.start()
        await own_nats.start()
        for _ in range(200):
            if (await get(http, "/readyz"))[1]["checks"]["nats"] == "ok":
                break
            await asyncio.sleep(0.05)
        assert await get(http, f"/v1/jobs/{job['job_id']}") == (200, job)
        await accepted(http, data=form(jpeg))
