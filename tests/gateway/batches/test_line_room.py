"""Lines of batches wait for room, and leave some to requests that somebody waits for."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import msgspec
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from broker_pipeline.redis_keys import tenant_jobs
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from gateway.settings import MIB, FetchSettings, Limits
from gateway.wiring import Gateway
from tests.gateway.batches.conftest import Carrying, answers, ended, errors, line, start_batch
from tests.kit.acting.conductor import acting_conductor
from tests.kit.waiting import eventually

LOCAL = FetchSettings(allow_private_urls=("127.0.0.0/8",))

BAD_MOMENTS = {
    "/busy": (503, 2),
    "/asked-too-much": (429, 1),
    "/down": (503, 99),
    "/gone": (404, 99),
    "/shut": (403, 99),
}
"""With which status a picture is refused, and how often."""


@dataclass
class Pictures:
    """A web server whose pictures are all different, of `num_bytes` each, and wait for `gate`."""

    jpeg: bytes
    num_bytes: int
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    num_asked: int = 0
    num_of: Counter[str] = field(default_factory=Counter)
    num_at_once: int = 0
    most_at_once: int = 0

    async def send(self, request: web.Request) -> web.Response:
        self.num_asked += 1
        self.num_of[request.path] += 1
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        try:
            if "waits" in request.path:
                await self.gate.wait()
        finally:
            self.num_at_once -= 1
        if (failure := BAD_MOMENTS.get(request.path)) and self.num_of[request.path] <= failure[1]:
            return web.Response(status=failure[0])
        return web.Response(body=self.jpeg + os.urandom(self.num_bytes), content_type="image/jpeg")

    def line(self, name: str) -> str:
        picture = {"type": "image_url", "image_url": {"url": f"{self.url}/{name}"}}
        return line(name, messages=[{"role": "user", "content": [picture]}])


@asynccontextmanager
async def serving(jpeg: bytes, num_bytes: int, port: int = 0) -> AsyncIterator[Pictures]:
    pictures = Pictures(jpeg, num_bytes)
    app = web.Application()
    app.router.add_get("/{name}", pictures.send)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    pictures.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield pictures
    finally:
        await runner.cleanup()


async def submit(client: AsyncOpenAI, *urls: str) -> int:
    async with aiohttp.ClientSession() as http:
        base = str(client.base_url).removesuffix("v1/")
        async with http.post(f"{base}v1/jobs", json={"prompt": "me", "images": list(urls)}) as answer:
            return answer.status


async def test_pictures_of_lines_are_fetched_as_far_as_there_is_memory_and_requests_have_their_own(
    start_carrying: Carrying, transport: Transport, redis: RedisClient, namespace: str, jpeg: bytes
) -> None:
    limits = Limits(max_body_bytes=MIB)
    async with (
        start_carrying(fetch=LOCAL, limits=limits) as (_, client),
        acting_conductor(transport, redis, namespace) as conductor,
        conductor.running(lambda _, media: str(len(media))),
        serving(jpeg, 1000) as pictures,
    ):
        batch = await start_batch(client, [pictures.line(f"waits-{index}") for index in range(12)])
        await eventually(lambda: pictures.num_at_once == 4)
        assert await submit(client, f"{pictures.url}/now") == 202
        pictures.gate.set()
        done = await ended(client, batch)
        assert await answers(client, done) == {f"waits-{index}": "1" for index in range(12)}
        assert pictures.most_at_once == 5, "four lines, and a request"


async def test_pictures_larger_than_expected_are_fetched_once_more(
    start_carrying: Carrying, transport: Transport, redis: RedisClient, namespace: str, jpeg: bytes
) -> None:
    async with (
        start_carrying(fetch=LOCAL) as (_, client),
        acting_conductor(transport, redis, namespace) as conductor,
        conductor.running(lambda _, media: str(len(media[0]))),
        serving(jpeg, 9 * MIB) as pictures,
    ):
        done = await ended(client, await start_batch(client, [pictures.line("large")]))
        assert await answers(client, done) == {"large": str(len(jpeg) + 9 * MIB)}
        assert pictures.num_asked == 2


async def test_a_picture_is_asked_for_again_while_its_server_has_a_bad_moment(
    start_carrying: Carrying,
    transport: Transport,
    redis: RedisClient,
    namespace: str,
    jpeg: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.batches.picture_retries._WAITS_S", (0.05, 0.1, 0.2))
    async with (
        start_carrying(fetch=msgspec.structs.replace(LOCAL, timeout_s=0.5)) as (_, client),
        acting_conductor(transport, redis, namespace) as conductor,
        conductor.running(lambda _, media: str(len(media))),
        serving(jpeg, 10) as pictures,
    ):
        names = [path.removeprefix("/") for path in BAD_MOMENTS] + ["waits", "fine"]
        done = await ended(client, await start_batch(client, [pictures.line(name) for name in names]))
        assert await answers(client, done) == dict.fromkeys(("busy", "asked-too-much", "fine"), "1")
        told = {name: row["response"] for name, row in (await errors(client, done)).items()}
    assert {name: row["body"]["error"]["message"].split()[-1] for name, row in told.items()} == {
        "down": "Unavailable",
        "gone": "Found",
        "shut": "Forbidden",
        "waits": "s",
    }
    assert {row["status_code"] for row in told.values()} <= {400, 503}
    assert dict(pictures.num_of) == {
        "/busy": 3,
        "/asked-too-much": 2,
        "/down": 4,
        "/waits": 4,
        "/gone": 1,
        "/shut": 1,
        "/fine": 1,
    }


async def test_lines_leave_a_quarter_of_the_queue_to_requests(
    start_carrying: Carrying, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    async with (
        start_carrying(queue_max_jobs=16) as (gateway, client),
        acting_conductor(transport, redis, namespace) as conductor,
    ):
        batch = await start_batch(client, [line(f"r{index}") for index in range(40)])

        async def is_as_full_as_lines_make_it() -> bool:
            return await gateway.queue.fullness() >= 0.75

        await eventually(is_as_full_as_lines_make_it)
        assert [await submit(client) for _ in range(3)] == [202] * 3
        assert await gateway.queue.fullness() == 15 / 16
        async with conductor.running(lambda *_: "yes"):
            done = await ended(client, batch)
        assert len(await answers(client, done)) == 40


async def test_lines_leave_a_quarter_of_the_media_store_to_requests_and_wait_until_there_is_room(
    start_carrying: Carrying, transport: Transport, redis: RedisClient, namespace: str, jpeg: bytes
) -> None:
    async with (
        start_carrying(fetch=LOCAL) as (gateway, client),
        acting_conductor(transport, redis, namespace) as conductor,
        serving(jpeg, 2 * MIB) as pictures,
    ):
        batch = await start_batch(client, [pictures.line(f"r{index}") for index in range(40)])

        async def is_as_full_as_lines_make_it() -> bool:
            return await gateway.media.fullness() >= 0.75

        await eventually(is_as_full_as_lines_make_it)
        assert await redis.zcard(tenant_jobs(namespace, "", "queued")) < 40 * 0.8
        sweeping = asyncio.create_task(_sweep(gateway))
        async with conductor.running(lambda *_: "yes"):
            done = await ended(client, batch)
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        assert len(await answers(client, done)) == 40


async def _sweep(gateway: Gateway) -> None:
    while True:
        await gateway.media.sweep(0.0)
        await asyncio.sleep(0.1)
