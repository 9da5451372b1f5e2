"""Many jobs with few requests, through a real gateway that is full, small, restarted and gone."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from broker_pipeline.client.bulk_calls import BulkCalls
from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.errors import BodyTooLargeError, GatewayUnreachableError, JobNotFoundError, NotAnImageError
from broker_pipeline.messages.jobs import VideoFilePart
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.local.servers import EmbeddedRedis
from broker_pipeline.wire.transport import Transport
from tests.kit.running.captioner import CaptioningConductor, numbered_picture
from tests.kit.running.gateway_process import gateway_process
from tests.kit.viewing.videos import clip

REQUEST = CaptionRequest("What?")
Serve = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def serve(tmp_path: Path, nats_url: str, redis_url: str, namespace: str) -> Serve:
    """Runs a gateway with some flags."""

    @asynccontextmanager
    async def run(*flags: str) -> AsyncIterator[str]:
        async with gateway_process(tmp_path, nats_url, redis_url, namespace, *flags) as (_, url):
            yield url

    return run


@asynccontextmanager
async def calls_of(url: str, patience_s: float = 20.0) -> AsyncIterator[BulkCalls]:
    async with GatewayClient.open(url, patience_s=patience_s) as client, BulkCalls.open(client) as calls:
        yield calls


async def caption(calls: BulkCalls, number: int) -> str:
    submitted = await calls.submit(numbered_picture(number), REQUEST, f"key-{number}")
    record = await calls.wait(submitted.record.job_id)
    assert record.result is not None, record
    return record.result.text


def requests(directory: Path) -> Counter[str]:
    """What the gateway's log says was asked of it, by path."""
    logged = [json.loads(line) for line in (directory / "gateway.log").read_text().splitlines()]
    return Counter(line["route"] for line in logged if line["event"] == "request_done")


async def test_many_jobs_take_few_requests(
    serve: Serve, tmp_path: Path, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    async with serve("--port", "0") as url, CaptioningConductor.working(transport, redis, namespace) as conductor:
        async with calls_of(url) as calls:
            texts = await asyncio.gather(*(caption(calls, number) for number in range(300)))
        assert all(text.startswith("picture of") for text in texts)
        assert conductor.seen.total() == 300
        asked = requests(tmp_path)
    assert asked["/v1/jobs/bulk"] < 30
    assert asked["/v1/jobs/wait"] < 200
    assert asked["/v1/jobs"] == 0


async def test_a_full_queue_and_a_small_body_slow_them_down_and_fail_none(
    serve: Serve, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    large = numbered_picture(1) + b"\0" * 700_000  # some of these in one request are too many, each alone is not
    flags = ("--port", "0", "--max-queued-jobs", "4", "--max-body-mb", "1")
    async with (
        serve(*flags) as url,
        CaptioningConductor.working(transport, redis, namespace),
        calls_of(url) as calls,
    ):

        async def one(number: int) -> str:
            submitted = await calls.submit(large + bytes([number]), REQUEST, f"key-{number}")
            return (await calls.wait(submitted.record.job_id)).status

        assert await asyncio.gather(*map(one, range(12))) == ["succeeded"] * 12
        with pytest.raises(BodyTooLargeError):
            await calls.submit(b"x" * 1_000_000, REQUEST, "too large")
        with pytest.raises(NotAnImageError) as refused:
            await calls.submit(b"no picture", REQUEST, "none")
        assert refused.value.field == "messages[0].content[0].url"


async def test_a_gateway_that_comes_back_costs_time_alone(
    serve: Serve, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    async with serve("--port", "0") as url:
        port = url.rpartition(":")[2]
    async with calls_of(url) as calls, CaptioningConductor.working(transport, redis, namespace) as conductor:
        asking = asyncio.gather(*(caption(calls, number) for number in range(20)))
        async with serve("--port", port):
            while conductor.seen.total() < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with serve("--port", port):
            await asking
        assert conductor.seen.total() == 20, "none was asked twice"


async def test_what_is_given_up_holds_up_nobody(
    serve: Serve, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    async with (
        serve("--port", "0") as url,
        CaptioningConductor.open(transport, redis, namespace) as conductor,
        calls_of(url) as calls,
        asyncio.TaskGroup() as group,
    ):
        submitted = [await calls.submit(numbered_picture(n), REQUEST, f"key-{n}") for n in range(3)]
        waits = [asyncio.ensure_future(calls.wait(each.record.job_id)) for each in submitted]
        await asyncio.sleep(0)
        waits[0].cancel()
        with pytest.raises(JobNotFoundError):
            await calls.wait("never-was")
        work = group.create_task(conductor.work())
        assert [(await each).status for each in waits[1:]] == ["succeeded"] * 2
        work.cancel()
    async with calls_of(url, patience_s=0.1) as calls:
        for call in (calls.submit(b"x", REQUEST, "k"), calls.wait("a")):
            with pytest.raises(GatewayUnreachableError):
                await call


async def test_a_video_is_sent_as_one(serve: Serve, transport: Transport, redis: RedisClient, namespace: str) -> None:
    async with (
        serve("--port", "0") as url,
        CaptioningConductor.open(transport, redis, namespace) as conductor,
        calls_of(url) as calls,
    ):
        await calls.submit(clip(), CaptionRequest(system="Be kind."), "key", is_video=True)
        spec = (await conductor.acting.take()).spec
    assert [message.role for message in spec.messages] == ["system", "user"]
    assert isinstance(spec.messages[1].content[0], VideoFilePart)


async def test_a_job_by_reference_that_waits_takes_less_than_1_kb_of_redis(
    tmp_path: Path, nats_url: str, own_redis: EmbeddedRedis, namespace: str
) -> None:
    num, flags = 4000, ("--namespace", namespace, "--media-roots", "/data/pictures", "--port", "0")
    async with (
        open_redis(own_redis.url) as redis,
        gateway_process(tmp_path, nats_url, own_redis.url, namespace, *flags) as (_, gateway),
        calls_of(gateway) as calls,
    ):
        urls = [f"file:///data/pictures/part-{n % 50:05}/{n:09}.jpg#sha256={n:064x}" for n in range(num)]

        async def used(start: int, stop: int) -> int:
            some = ((urls[n], f"caption-{n:032x}") for n in range(start, stop))
            await asyncio.gather(*(calls.submit(url, REQUEST, key) for url, key in some))
            return int((await redis.info("memory"))["used_memory"])

        before = await used(0, num // 2)  # scripts and all that is there once
        assert (await used(num // 2, num) - before) / (num / 2) < 1024
