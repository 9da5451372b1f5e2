"""Somebody is told of batches that end, and OpenAI's client believes it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web
from openai import AsyncOpenAI, InvalidWebhookSignatureError

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.state.redis_client import RedisClient, open_redis
from gateway.address_guard import AddressGuard
from gateway.app import url_of
from gateway.batches.batch_store import BatchStore
from gateway.batches.webhooks.end_teller import EndTeller
from gateway.batches.webhooks.webhook import Webhooks, make_webhooks
from gateway.settings import FetchSettings, WebhookSettings
from tests.gateway.batches.conftest import Carrying, client_of, echo, ended, line, start_batch
from tests.kit.acting.conductor import acting_conductor
from tests.kit.running.gateway_process import gateway_process
from tests.kit.waiting import eventually

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
HERE = FetchSettings(allow_private_urls=("127.0.0.0/8",))
QUICK = (0.3, 0.3)


class Receiver:
    """Answers what is posted to it with `status`; 0 is never."""

    def __init__(self) -> None:
        self.status = 200
        self.url = ""
        self.heard: list[tuple[bytes, dict[str, str]]] = []
        self.paths: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.heard.append((await request.read(), dict(request.headers)))
        self.paths.append(request.path)
        if not self.status:
            await asyncio.Event().wait()
        return web.Response(status=self.status, headers={"Location": f"{self.url}/elsewhere"})


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    here = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", here.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    here.url = url_of(*runner.addresses[0][:2])
    yield here
    await runner.cleanup()


@pytest.fixture
def webhook(receiver: Receiver, tmp_path: Path) -> WebhookSettings:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return WebhookSettings(url=f"{receiver.url}/ends", secret_file=str(tmp_path / "secret"))


@asynccontextmanager
async def telling(batches: BatchStore, webhooks: Webhooks, **more: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(EndTeller(batches, webhooks, **more).run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_ends_are_told_and_signed(
    start_carrying: Carrying, receiver: Receiver, webhook: WebhookSettings, transport: Any, redis: Any, namespace: str
) -> None:
    async with (
        start_carrying(webhook=webhook, fetch=HERE) as (gateway, client),
        acting_conductor(transport, redis, namespace) as conductor,
        telling(gateway.batches, gateway.webhooks),
    ):
        async with conductor.running(echo):
            done = await ended(client, await start_batch(client, [line("a")]))
        wrong = await ended(client, await start_batch(client, "no JSON"))
        waiting = await start_batch(client, [line("b")])
        await client.batches.cancel(waiting.id)
        late = await ended(client, await start_batch(client, [line("c")], completion_window="1s"))
        expected = {
            (done.id, "batch.completed", done.completed_at),
            (wrong.id, "batch.failed", wrong.failed_at),
            (waiting.id, "batch.cancelled", (await ended(client, waiting)).cancelled_at),
            (late.id, "batch.expired", late.expired_at),
        }
        await eventually(lambda: len(receiver.heard) >= len(expected))
    events = [client.webhooks.unwrap(body, headers, secret=SECRET) for body, headers in receiver.heard]
    assert {(event.data.id, event.type, event.created_at) for event in events} == expected  # type: ignore[union-attr]
    assert len(events) == len(expected)
    body, headers = receiver.heard[0]
    with pytest.raises(InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"batch", b"botch", 1), headers, secret=SECRET)


async def untold(redis: RedisClient, namespace: str) -> int:
    return int(await redis.zcard(f"{namespace}:batches-untold"))


async def refused_batch(client: AsyncOpenAI) -> str:
    """Make a batch that ends without a conductor."""
    return (await ended(client, await start_batch(client, "no JSON"))).id


async def test_who_does_not_hear_is_told_again_until_it_is_given_up(
    start_carrying: Carrying, receiver: Receiver, webhook: WebhookSettings, redis: RedisClient, namespace: str
) -> None:
    receiver.status = 307  # a redirect is not followed, and no success
    async with start_carrying(webhook=webhook, fetch=HERE) as (gateway, client):
        batch_id = await refused_batch(client)
        store = BatchStore(redis, namespace, retry_s=QUICK)
        async with telling(store, gateway.webhooks):
            await eventually(lambda: len(receiver.heard) >= 2)
            assert await untold(redis, namespace) == 1
            receiver.status = 204

            async def is_told() -> bool:
                return not await untold(redis, namespace)

            await eventually(is_told)
        ids = {client.webhooks.unwrap(*heard, secret=SECRET).id for heard in receiver.heard}
        assert ids == {f"evt_{batch_id}"}, "a repeat can be seen to be one"
        receiver.status = 500
        await refused_batch(client)
        async with telling(store, gateway.webhooks, give_up_s=0.0):
            await eventually(is_told)


async def test_a_gateway_that_dies_while_it_tells_leaves_it_to_another(
    receiver: Receiver, webhook: WebhookSettings, tmp_path: Path, nats_url: str, redis_url: str, namespace: str
) -> None:
    receiver.status = 0
    told = ("--webhook-url", str(webhook.url), "--webhook-secret-file", str(webhook.secret_file))
    start = partial(gateway_process, tmp_path, nats_url, redis_url, namespace, "--port", "0", "--max-files-mb", "64")
    async with start(*told, "--allow-private-urls", "127.0.0.0/8") as (process, url):
        async with client_of(url) as client:
            await refused_batch(client)
        await eventually(lambda: len(receiver.heard) == 1)
        process.kill()
        await process.wait()
    receiver.status = 200
    async with open_redis(redis_url) as redis, start(*told, "--allow-private-urls", "127.0.0.0/8"):
        (batch_id,) = await redis.zrange(f"{namespace}:batches-untold", 0, -1)
        await redis.zadd(f"{namespace}:batches-untold", {batch_id: 0})  # as if its next try's time had come
        await eventually(lambda: len(receiver.heard) == 2)


async def test_without_a_webhook_nothing_is_kept(start_carrying: Carrying, redis: RedisClient, namespace: str) -> None:
    async with start_carrying() as (gateway, client):
        assert not gateway.webhooks
        await refused_batch(client)
        assert await untold(redis, namespace) == 0


async def test_a_tenant_has_a_webhook_of_its_own(
    start_carrying: Carrying, receiver: Receiver, webhook: WebhookSettings, redis: RedisClient, namespace: str
) -> None:
    nobody = ""  # whose batches are those that are sent without a key
    path = str(webhook.secret_file)
    theirs = (("alice", f"{receiver.url}/alice", path), (nobody, f"{receiver.url}/nobody", path))
    for of_tenants, paths in ((theirs, {"/nobody"}), (theirs[:1], {"/ends"})):
        settings = msgspec.structs.replace(webhook, of_tenants=of_tenants)
        async with start_carrying(webhook=settings, fetch=HERE) as (gateway, client):
            receiver.paths.clear()
            async with telling(gateway.batches, gateway.webhooks):
                await refused_batch(client)
                await eventually(lambda: bool(receiver.paths))
            assert set(receiver.paths) == paths
    alone = WebhookSettings(of_tenants=theirs[:1])
    async with start_carrying(webhook=alone, fetch=HERE) as (gateway, client):
        await refused_batch(client)
        receiver.paths.clear()
        async with telling(gateway.batches, gateway.webhooks):

            async def is_told() -> bool:
                return not await untold(redis, namespace)

            await eventually(is_told)
    assert receiver.paths == [], "nobody is to be told of this tenant's batches"


async def test_private_addresses_are_not_told(
    start_carrying: Carrying, receiver: Receiver, webhook: WebhookSettings
) -> None:
    async with start_carrying(webhook=webhook) as (gateway, client):
        batch = await gateway.batches.get(await refused_batch(client))
        assert gateway.webhooks.of_all is not None
        assert "--allow-private-urls" in (await gateway.webhooks.of_all.tell(batch) or "")
    assert receiver.heard == []


@pytest.mark.parametrize(
    ("url", "secret", "field"),
    [
        ("ftp://example.com", SECRET, "webhook_url"),
        (None, SECRET, "webhook_url"),
        ("https://example.com", None, "webhook_secret_file"),
        ("https://example.com", "whsec_c2hvcnQ=", "webhook_secret_file"),
        ("https://example.com", "whsec_###", "webhook_secret_file"),
        ("https://example.com", SECRET.removeprefix("whsec_"), "webhook_secret_file"),
    ],
)
def test_what_cannot_be_one_is_refused(tmp_path: Path, url: str | None, secret: str | None, field: str) -> None:
    (tmp_path / "secret").write_text(secret or "")
    settings = WebhookSettings(url=url, secret_file=str(tmp_path / "secret") if secret else None)
    with pytest.raises(ConfigurationError) as refused:
        make_webhooks(settings, AddressGuard())
    assert refused.value.field == field


async def test_tries_become_rarer(redis: RedisClient, namespace: str) -> None:
    store = BatchStore(redis, namespace, retry_s=(15.0, 3600.0))
    seconds, _ = await redis.time()
    waits = {}
    for age_s in (0, 100, 100_000):
        await redis.hset(f"{namespace}:batch:b", mapping={"status": "failed", "failed_at": seconds - age_s})
        await redis.zadd(f"{namespace}:batches-untold", {"b": 0})
        assert await store.take_untold() == "b"
        assert await store.take_untold() is None, "it is not due yet"
        waits[age_s] = await redis.zscore(f"{namespace}:batches-untold", "b") - seconds
    assert waits == pytest.approx({0: 15, 100: 100, 100_000: 3600}, abs=10)
