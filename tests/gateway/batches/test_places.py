"""The lines of batches keep to the limits of the key that the batch came with; none fails of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, RateLimitError

from broker_pipeline import redis_keys
from broker_pipeline.messages.keys import GatewayKey, KeyLimits
from broker_pipeline.state.access.gateway_keys import GatewayKeys, hash_of
from broker_pipeline.state.redis_client import RedisClient
from gateway.app import batch_runner
from gateway.settings import BatchLimits
from gateway.wiring import Gateway
from tests.gateway.batches.conftest import answers, echo, ended, line, start_batch
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import ActingConductor, prompt_of
from tests.kit.waiting import eventually


@dataclass
class Limited:
    """A gateway, clients of it with a key that has limits, and a runner of batches that can be stopped."""

    gateway: Gateway
    redis: RedisClient
    namespace: str
    client: AsyncOpenAI
    secret: str
    runners: list[asyncio.Task[None]] = field(default_factory=list)

    def carry_on(self) -> None:
        self.runners.append(asyncio.create_task(batch_runner(self.gateway).run()))

    async def stop(self) -> None:
        for runner in self.runners:
            runner.cancel()
            with suppress(asyncio.CancelledError):
                await runner
        self.runners.clear()

    async def num_places(self) -> int:
        return await self.redis.zcard(redis_keys.limits_parallel(self.namespace, hash_of(self.secret)))

    async def num_queued(self) -> int:
        return await self.redis.zcard(redis_keys.tenant_jobs(self.namespace, "a", "queued"))


Open = Callable[..., Awaitable[Limited]]


@pytest_asyncio.fixture
async def limited(start_gateway: OpenGateway, redis: RedisClient, namespace: str) -> AsyncIterator[Open]:
    opened: list[Limited] = []
    async with start_gateway(batches=BatchLimits(jobs_in_flight=8, lease_s=1.0)) as (gateway, url):

        async def open_limited(**limits: int) -> Limited:
            key = GatewayKey(tenant="a", scopes=("submit", "read"), created_at=1.0, limits=KeyLimits(**limits))
            secret = await GatewayKeys(redis, namespace).create(key)
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
            opened.append(Limited(gateway, redis, namespace, client, secret))
            return opened[-1]

        yield open_limited
        for each in opened:
            await each.stop()
            await each.client.close()


async def ask(client: AsyncOpenAI) -> str | None:
    messages = [{"role": "user", "content": "me"}]
    answer = await client.chat.completions.create(model="demo", messages=messages)  # type: ignore[arg-type]
    return answer.choices[0].message.content


async def test_lines_have_places_as_requests_do_and_a_refused_request_goes_first(
    limited: Open, conductor: ActingConductor
) -> None:
    pipeline = await limited(max_parallel=2)
    pipeline.carry_on()
    batch = await start_batch(pipeline.client, [line(f"r{index}") for index in range(6)])
    first, second = await conductor.take(), await conductor.take()
    assert await conductor.queue.pull(0.5) is None, "a third line waits"
    with pytest.raises(RateLimitError) as refused:
        await ask(pipeline.client)
    assert refused.value.response.headers["Retry-After"] == "1"
    await conductor.run(first, echo)

    async def is_left() -> bool:
        return await pipeline.num_places() == 1

    await eventually(is_left)
    asking = asyncio.create_task(ask(pipeline.client))  # as a client that tries again
    next_one = await conductor.take()
    assert (prompt_of(next_one.spec), next_one.spec.priority) == ("me", "interactive")
    await conductor.run(next_one, echo)
    assert await asking == "I heard me"
    await conductor.run(second, echo)
    async with conductor.running(echo):
        done = await ended(pipeline.client, batch)
    assert await answers(pipeline.client, done) == {f"r{index}": f"I heard r{index}" for index in range(6)}
    assert await pipeline.num_places() == 0


async def test_a_batch_and_requests_of_one_key_both_go_on(limited: Open, conductor: ActingConductor) -> None:
    pipeline = await limited(max_parallel=2)
    pipeline.carry_on()
    num_refused = 0

    async def keep_asking() -> None:
        nonlocal num_refused
        while True:
            try:
                assert await ask(pipeline.client) == "I heard me"
            except RateLimitError:
                num_refused += 1
                await asyncio.sleep(0.1)  # sooner than it was told to

    async with conductor.running(echo):
        asking = asyncio.create_task(keep_asking())
        done = await ended(pipeline.client, await start_batch(pipeline.client, [line(f"r{n}") for n in range(6)]))
        asking.cancel()
    assert len(await answers(pipeline.client, done)) == 6
    assert num_refused <= 2, "then lines leave a place"


async def test_lines_wait_while_as_many_jobs_wait_as_the_key_may_have(
    limited: Open, conductor: ActingConductor
) -> None:
    pipeline = await limited(max_queued=3)
    pipeline.carry_on()
    batch = await start_batch(pipeline.client, [line(f"r{index}") for index in range(8)])
    most = 0

    async def has_ended() -> bool:
        nonlocal most
        most = max(most, await pipeline.num_queued())
        if most == 3 and (delivery := await conductor.queue.pull(0.1)) is not None:
            await conductor.run(delivery, echo)
        return (await pipeline.client.batches.retrieve(batch.id)).status == "completed"

    await eventually(has_ended, timeout_s=60)
    assert most == 3
    done = await pipeline.client.batches.retrieve(batch.id)
    assert len(await answers(pipeline.client, done)) == 8


async def test_lines_take_nothing_of_what_a_key_has_for_a_minute(limited: Open, conductor: ActingConductor) -> None:
    pipeline = await limited(requests_per_minute=4, tokens_per_minute=1000)
    pipeline.carry_on()
    async with conductor.running(echo):
        batch = await start_batch(pipeline.client, [line(f"r{index}", max_tokens=900) for index in range(8)])
        done = await ended(pipeline.client, batch)
        assert len(await answers(pipeline.client, done)) == 8
        asked = await pipeline.client.chat.completions.with_raw_response.create(
            model="demo", messages=[{"role": "user", "content": "me"}], max_tokens=900
        )
    left = asked.headers["x-ratelimit-remaining-requests"]
    assert left == "1", "the file, the batch and this were requests; looking at them was none"


async def test_whoever_goes_on_finds_lines_under_way_counted_and_an_end_gives_their_places_back(
    limited: Open, conductor: ActingConductor
) -> None:
    pipeline = await limited(max_parallel=2)
    pipeline.carry_on()
    batch = await start_batch(pipeline.client, [line(f"r{index}") for index in range(4)])
    kept = [await conductor.take(), await conductor.take()]
    await pipeline.stop()
    assert await pipeline.num_places() == 2, "their jobs go on"
    pipeline.carry_on()
    assert await conductor.queue.pull(1.5) is None, "the next run has these two under way, and no third"
    await conductor.run(kept[0], echo)
    third = await conductor.take()
    assert await pipeline.num_places() == 2
    await pipeline.client.batches.cancel(batch.id)
    cancelled = await ended(pipeline.client, batch)
    assert (cancelled.status, await pipeline.num_places()) == ("cancelled", 0)
    for delivery in (kept[1], third):
        await delivery.ack()
