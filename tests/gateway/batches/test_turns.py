"""Tenants' batches have their turns, however many and long those of others are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, NotFoundError

from broker_pipeline import redis_keys
from broker_pipeline.messages.keys import GatewayKey, Scope
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.jobs import Delivery
from broker_pipeline.wire.transport import Transport
from gateway.access.caller import Caller
from gateway.app import batch_runner
from gateway.batches.batch_store import BatchOrder
from gateway.settings import BatchLimits
from gateway.wiring import Gateway
from tests.gateway.batches.conftest import answers, echo, ended, line, start_batch
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import ActingConductor, acting_conductor, prompt_of


@dataclass(frozen=True)
class Tenants:
    gateway: Gateway
    alice: AsyncOpenAI
    bob: AsyncOpenAI
    operator: AsyncOpenAI


@pytest_asyncio.fixture
async def tenants(start_gateway: OpenGateway, redis: RedisClient, namespace: str) -> AsyncIterator[Tenants]:
    """A gateway that carries on one batch at a time, two requests of it, and clients of two tenants."""
    keys = GatewayKeys(redis, namespace)
    limits = BatchLimits(max_running=1, jobs_in_flight=2)
    async with start_gateway(batches=limits) as (gateway, url), AsyncExitStack() as stack:
        clients = []
        for name in ("alice", "bob", "operator"):
            scopes: tuple[Scope, ...] = ("operate",) if name == "operator" else ("submit", "read")
            secret = await keys.create(GatewayKey(tenant=name, scopes=scopes, created_at=1.0))
            clients.append(await stack.enter_async_context(AsyncOpenAI(base_url=f"{url}/v1", api_key=secret)))
        yield Tenants(gateway, *clients)


async def test_batches_are_due_in_turns_over_tenants_and_by_priority_within_one(tenants: Tenants) -> None:
    async def made(who: AsyncOpenAI, name: str, priority: int = 0) -> str:
        return (await start_batch(who, [line(name)], metadata={"n": name}, extra_body={"priority": priority})).id

    first, second = await made(tenants.alice, "1"), await made(tenants.alice, "2")
    urgent, late = await made(tenants.alice, "3", -1), await made(tenants.bob, "4")
    batches = tenants.gateway.batches

    async def due(limit: int = 10) -> list[tuple[str, int]]:
        return [(batch.id, batch.num_carried) for batch in await batches.due(limit)]

    assert await due() == [(urgent, 0), (late, 0), (first, 1), (second, 2)]
    assert await due(2) == [(urgent, 0), (late, 0)]
    assert await batches.lease(urgent, "somebody").acquire() is not None
    assert await due() == [(late, 0), (first, 1), (second, 2)]


async def test_whose_turn_was_longest_ago_comes_next(tenants: Tenants) -> None:
    batches = tenants.gateway.batches
    long, other = [
        (await start_batch(who, [line(name)], metadata={"n": name})).id
        for who, name in ((tenants.alice, "1"), (tenants.bob, "2"))
    ]
    assert [batch.id for batch in await batches.due(1, num_taken=1)] == [long]
    assert [batch.id for batch in await batches.due(2)] == [other, long]


async def test_a_batch_is_due_unless_it_is_carried_on_paused_or_ended(tenants: Tenants) -> None:
    batches, ask = tenants.gateway.batches, tenants.alice.batches
    first, second = [(await start_batch(tenants.alice, [line(name)], metadata={"n": name})).id for name in "12"]

    async def due(num_taken: int = 0) -> list[str]:
        return [batch.id for batch in await batches.due(9, num_taken)]

    async def steer(batch_id: str, action: str) -> None:
        await ask._post(f"/batches/{batch_id}/{action}", cast_to=object)

    lease = batches.lease(first, "somebody")
    assert await due(num_taken=1) == [first, second]
    assert await due() == [first, second], "nobody has taken its lease: whoever was to is gone"
    assert await lease.acquire() is not None
    assert await due() == [second]
    await steer(second, "pause")
    await steer(first, "pause")
    assert await due() == []
    await steer(second, "resume")
    assert await due() == [second]
    await lease.release()
    assert await due() == [second], "it is paused"
    await ask.cancel(first)
    assert await due() == [first, second]
    held = batches.held(first, "somebody")
    assert await lease.acquire() is not None
    assert await held.finish("cancelling", "cancelled")
    await lease.release()
    assert await due() == [second]


async def test_a_tenant_among_many_has_its_turn(tenants: Tenants, redis: RedisClient, namespace: str) -> None:
    batches = tenants.gateway.batches
    made = {}
    for index in range(12):
        tenant = f"t{index}"
        await redis.hset(redis_keys.file(namespace, tenant), mapping={"tenant": tenant, "bytes": 1})  # type: ignore[misc]
        for name in "ab":
            order = BatchOrder(
                caller=Caller(frozenset(), tenant),
                input_file_id=tenant,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                window_s=3600,
                metadata={"n": name},
            )
            made[(await batches.create(order)).id] = tenant
    turns = []
    for _ in range(8):
        taken = await batches.due(3, num_taken=3)
        for batch in taken:
            assert await batches.lease(batch.id, "somebody").acquire() is not None
        turns += [made[batch.id] for batch in taken]
    assert sorted(turns[:12]) == sorted(turns[12:]) == sorted(set(made.values())), "each once, then each again"


async def test_a_long_batch_gives_way_to_a_tenant_who_has_none_and_goes_on_later(
    tenants: Tenants, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    running = asyncio.create_task(batch_runner(tenants.gateway, slice_s=0.0).run())
    async with acting_conductor(transport, redis, namespace) as conductor:
        hers = await start_batch(tenants.alice, [line(f"a{index}") for index in range(6)])
        kept = [await conductor.take()]  # it is carried on, and nobody answers
        his = await start_batch(tenants.bob, [line("b0"), line("b1")])
        answering = asyncio.create_task(_answer_bob(conductor, kept))
        assert await answers(tenants.bob, await ended(tenants.bob, his)) == {"b0": "I heard b0", "b1": "I heard b1"}
        assert (await tenants.alice.batches.retrieve(hers.id)).status == "in_progress"
        answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
        for delivery in kept:
            await conductor.run(delivery, echo)
        async with conductor.running(echo):
            done = await ended(tenants.alice, hers)
        assert await answers(tenants.alice, done) == {f"a{index}": f"I heard a{index}" for index in range(6)}
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_batches_that_an_earlier_build_left_go_on(
    tenants: Tenants, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    """Whatever their status: that build had one set of ids for all that had not ended."""
    made = {
        name: await start_batch(tenants.alice, [line("a")], metadata={"n": name})
        for name in ("new", "stopped", "paused")
    }
    await tenants.alice.batches.cancel(made["stopped"].id)
    await tenants.alice.post(f"/batches/{made['paused'].id}/pause", cast_to=object)
    await redis.delete(redis_keys.batches_waiting(namespace, "alice"), redis_keys.batches_turns(namespace))
    scores = {batch.id: batch.created_at for batch in made.values()}
    await redis.zadd(redis_keys.batches_active(namespace), scores | {"batch_forgotten": 1})
    running = asyncio.create_task(batch_runner(tenants.gateway).run())
    async with acting_conductor(transport, redis, namespace) as conductor, conductor.running(echo):
        for name, status in (("new", "completed"), ("stopped", "cancelled")):
            assert (await ended(tenants.alice, made[name])).status == status
        assert (await tenants.alice.batches.retrieve(made["paused"].id)).status == "validating"
        await tenants.alice.post(f"/batches/{made['paused'].id}/resume", cast_to=object)
        assert (await ended(tenants.alice, made["paused"])).status == "completed"
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_operators_find_and_stop_a_batch_of_anybody_and_others_only_their_own(tenants: Tenants) -> None:
    hers = await start_batch(tenants.alice, [line("a")])
    for ask in (tenants.bob.batches.retrieve, tenants.bob.batches.cancel):
        with pytest.raises(NotFoundError):
            await ask(hers.id)

    async def listed(who: AsyncOpenAI) -> list[str]:
        return [batch.id async for batch in who.batches.list(extra_query={"tenant": "alice"})]

    assert (await listed(tenants.bob), await listed(tenants.operator)) == ([], [hers.id])
    assert (await tenants.operator.batches.retrieve(hers.id)).status == "validating"
    assert (await tenants.operator.batches.cancel(hers.id)).status == "cancelling"


async def _answer_bob(conductor: ActingConductor, kept: list[Delivery]) -> None:
    while True:
        delivery = await conductor.take(30.0)
        if prompt_of(delivery.spec).startswith("b"):
            await conductor.run(delivery, echo)
        else:
            kept.append(delivery)
