"""Failed jobs over real HTTP, NATS and Redis: sent again, discarded, and what a gateway that dies leaves behind."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
import pytest

from broker_pipeline import redis_keys
from broker_pipeline.conductor.jobs.job_end import Stores
from broker_pipeline.conductor.jobs.unqueued_jobs import UnqueuedJobs
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.errors import Failure, TransportError
from broker_pipeline.messages.jobs import JobSpec
from broker_pipeline.state.redis_client import RedisClient
from gateway.wiring import Gateway
from tests.gateway.api.native.test_jobs import accepted, form
from tests.kit.acting.conductor import ActingConductor

CAUSE = Failure("retries_exhausted", "broke")


async def failed_job(http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, **request: Any) -> str:
    job = await accepted(http, data=form(jpeg), **request)
    await conductor.run(await conductor.take(), lambda *_: CAUSE)
    return str(job["job_id"])


async def answered(http: aiohttp.ClientSession, method: str, path: str) -> tuple[int, dict[str, Any]]:
    async with http.request(method, path) as answer:
        return answer.status, await answer.json()


async def media_references(redis: RedisClient, namespace: str) -> set[str]:
    keys = [key async for key in redis.scan_iter(f"{namespace}:media:*:jobs")]
    return {member.decode() for key in keys for member in await redis.smembers(key)}


async def test_a_failed_job_is_sent_again_with_its_picture(
    running: tuple[Gateway, str],
    http: aiohttp.ClientSession,
    conductor: ActingConductor,
    jpeg: bytes,
    redis: RedisClient,
    namespace: str,
) -> None:
    gateway, _ = running
    job_id = await failed_job(http, conductor, jpeg)
    await gateway.media.sweep(0.0)
    status, shown = await answered(http, "POST", f"/v1/jobs/{job_id}/retry")
    assert (status, shown["status"], shown["num_retries"]) == (202, "queued", 1)
    assert [past["error"]["code"] for past in shown["failures"]] == ["retries_exhausted"]
    assert await media_references(redis, namespace) == {f"{job_id}.1"}
    await gateway.media.sweep(0.0)

    await conductor.run(await conductor.take(), lambda _, media: f"{len(media[0])} bytes")
    _, shown = await answered(http, "GET", f"/v1/jobs/{job_id}")
    assert (shown["status"], shown["result"]["text"]) == ("succeeded", f"{len(jpeg)} bytes")
    assert [past["error"]["message"] for past in shown["failures"]] == ["broke"]
    assert await conductor.queue.pull(0.2) is None
    assert await media_references(redis, namespace) == set()
    assert (await gateway.store.counts()).succeeded == 1
    assert await redis.zcard(redis_keys.media_kept(namespace)) == 0
    assert await redis.zcard(redis_keys.unpublished(namespace)) == 0


async def test_it_may_fail_and_be_sent_again_many_times(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job_id = await failed_job(http, conductor, jpeg)
    for number in range(1, 4):
        assert (await answered(http, "POST", f"/v1/jobs/{job_id}/retry"))[0] == 202
        await conductor.run(await conductor.take(), lambda *_: CAUSE)
        _, shown = await answered(http, "GET", f"/v1/jobs/{job_id}")
        assert (shown["status"], shown["num_retries"], len(shown["failures"])) == ("failed", number, number)


async def test_asking_twice_runs_it_once(http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes) -> None:
    job_id = await failed_job(http, conductor, jpeg)
    answers = await asyncio.gather(*(answered(http, "POST", f"/v1/jobs/{job_id}/retry") for _ in range(4)))
    assert {status for status, _ in answers} == {202}
    await conductor.run(await conductor.take(), lambda *_: "once")
    assert await conductor.queue.pull(0.2) is None
    status, shown = await answered(http, "POST", f"/v1/jobs/{job_id}/retry")
    assert (status, shown["error"]["code"]) == (409, "job_state")
    assert "succeeded" in shown["error"]["message"]


@pytest.mark.parametrize("is_begun", [False, True])
async def test_a_job_that_has_not_failed_is_not_sent_again(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, is_begun: bool
) -> None:
    job = await accepted(http, data=form(jpeg))
    if is_begun:
        await conductor.begin((await conductor.take()).spec)
    status, shown = await answered(http, "POST", f"/v1/jobs/{job['job_id']}/retry")
    assert (status, shown["error"]["code"], shown["error"]["retryable"]) == (409, "job_state", False)
    assert (await answered(http, "POST", "/v1/jobs/nope/retry"))[0] == 404


async def test_a_job_whose_picture_is_gone_says_so_and_stays_failed(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    gateway, _ = running
    job = await accepted(http, data=form(jpeg))
    assert (await answered(http, "DELETE", f"/v1/jobs/{job['job_id']}"))[1]["status"] == "cancelled"
    await gateway.media.sweep(0.0)
    status, shown = await answered(http, "POST", f"/v1/jobs/{job['job_id']}/retry")
    assert (status, shown["error"]["code"]) == (422, "media_missing")
    assert "submit them anew" in shown["error"]["message"]
    assert (await answered(http, "GET", f"/v1/jobs/{job['job_id']}"))[1]["status"] == "cancelled"


async def test_a_cancelled_job_without_pictures_is_sent_again(
    http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    job = await accepted(http, json={"prompt": "Hi"})
    await answered(http, "DELETE", f"/v1/jobs/{job['job_id']}")
    assert (await answered(http, "POST", f"/v1/jobs/{job['job_id']}/retry"))[0] == 202
    first, second = await conductor.take(), await conductor.take()
    await conductor.run(first, lambda *_: pytest.fail("what was cancelled ran"))
    await conductor.run(second, lambda *_: "said")
    assert (await conductor.store.get(job["job_id"])).status == "succeeded"


async def test_a_deleted_failure_is_gone_with_its_picture(
    running: tuple[Gateway, str],
    http: aiohttp.ClientSession,
    conductor: ActingConductor,
    jpeg: bytes,
    redis: RedisClient,
    namespace: str,
) -> None:
    gateway, _ = running
    job_id = await failed_job(http, conductor, jpeg, headers={"Idempotency-Key": "k"})
    status, shown = await answered(http, "DELETE", f"/v1/jobs/{job_id}")
    assert (status, shown["status"], shown["error"]["code"]) == (200, "failed", "retries_exhausted")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/retry")):
        assert (await answered(http, method, f"/v1/jobs/{job_id}{path}"))[0] == 404
    assert await media_references(redis, namespace) == set()
    assert await gateway.media.sweep(0.0) == 1
    assert (await accepted(http, data=form(jpeg), headers={"Idempotency-Key": "k"}))["job_id"] != job_id


async def test_what_a_gateway_that_died_had_not_queued_is_queued_by_the_conductor(
    running: tuple[Gateway, str],
    http: aiohttp.ClientSession,
    conductor: ActingConductor,
    jpeg: bytes,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the request in Redis on the job will run, whatever dies before it is in the queue."""
    gateway, _ = running
    job_id = await failed_job(http, conductor, jpeg)

    async def die(spec: JobSpec, *, occasion: str = "") -> bool:
        raise TransportError(f"gone before {spec.job_id} {occasion} was sent")

    with monkeypatch.context() as dying:
        dying.setattr(gateway.queue, "publish", die)
        status, shown = await answered(http, "POST", f"/v1/jobs/{job_id}/retry")
        assert (status, shown["error"]["retryable"]) == (503, True)
    assert await conductor.queue.pull(0.2) is None
    unqueued = UnqueuedJobs(
        Stores.open(gateway.transport, gateway.redis, namespace, Watchers()), gateway.publisher, since_s=0
    )
    assert await unqueued.sweep() == 1
    await conductor.run(await conductor.take(), lambda _, media: f"{len(media[0])} bytes")
    assert (await conductor.store.get(job_id)).status == "succeeded"
    assert await unqueued.sweep() == 0


async def test_the_same_wish_again_queues_what_was_left(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    gateway, _ = running
    job_id = await failed_job(http, conductor, jpeg)
    spec = await gateway.media.reclaim(_again(await gateway.store.spec(job_id)))
    await gateway.retries.failed.retry(spec)  # and then the gateway was killed
    assert (await answered(http, "POST", f"/v1/jobs/{job_id}/retry"))[0] == 202
    await conductor.run(await conductor.take(), lambda *_: "after all")
    assert (await conductor.store.get(job_id)).status == "succeeded"


async def test_metrics_count_what_was_sent_again(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job_id = await failed_job(http, conductor, jpeg)
    await answered(http, "POST", f"/v1/jobs/{job_id}/retry")
    await answered(http, "POST", "/v1/jobs/nope/retry")
    async with http.get("/metrics") as answer:
        text = await answer.text()
    assert 'broker_pipeline_jobs_retried_total{outcome="accepted"} 1.0' in text
    assert 'broker_pipeline_jobs_retried_total{outcome="job_not_found"} 1.0' in text


def _again(spec: JobSpec) -> JobSpec:
    return msgspec.structs.replace(spec, num_retries=1)
