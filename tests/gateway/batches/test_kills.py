"""A gateway dies at any step of a batch's life, and another one ends it: each request once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import msgspec
import pytest
from openai.types import Batch

from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from gateway.app import batch_runner
from gateway.settings import BatchLimits, GatewaySettings
from gateway.wiring import Gateway, open_gateway
from tests.gateway.batches.conftest import answers, client_of, echo, ended, errors, line, start_batch
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import acting_conductor

NUM_KILLS = 16
"""Steps are requests to Redis, of which a batch of three lines takes some more."""
LINES = [line("a"), line("hot", temperature=9), line("b")]


class DyingLink:
    """Leads to Redis until so many requests were made, the last of them with or without its effect; then nowhere."""

    def __init__(self, url: str) -> None:
        self.num_requests = 0
        self._url = url
        self._dies_at = float("inf")
        self._has_effect = True

    @property
    def is_dead(self) -> bool:
        return self.num_requests >= self._dies_at

    def die_at(self, step: int, *, has_effect: bool) -> None:
        self._dies_at, self._has_effect = self.num_requests + step, has_effect

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self._url)
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        back = asyncio.create_task(self._back(far_reader, writer))
        with suppress(OSError):
            while (data := await reader.read(2**20)) and not self.is_dead:
                self.num_requests += 1
                if not self.is_dead or self._has_effect:
                    far_writer.write(data)
                    await far_writer.drain()
                if self.is_dead:
                    break
        writer.close()
        far_writer.close()
        await back

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(2**20):
                if not self.is_dead:
                    writer.write(data)


@asynccontextmanager
async def dying_gateway(settings: GatewaySettings) -> AsyncIterator[tuple[Gateway, DyingLink]]:
    link = DyingLink(settings.common.redis_url)
    server = await asyncio.start_server(link.forward, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    common = msgspec.structs.replace(settings.common, redis_url=f"redis://{host}:{port}/0")
    try:
        async with open_gateway(msgspec.structs.replace(settings, common=common), asyncio.Event()) as gateway:
            yield gateway, link
    finally:
        server.close()


@pytest.mark.parametrize("has_effect", [False, True], ids=["not asked", "not answered"])
async def test_a_gateway_may_die_at_any_step(
    start_gateway: OpenGateway,
    settings: GatewaySettings,
    transport: Transport,
    redis: RedisClient,
    namespace: str,
    *,
    has_effect: bool,
) -> None:
    limits = BatchLimits(lease_s=1.0, max_running=NUM_KILLS)
    settings = msgspec.structs.replace(settings, batches=limits)

    async def carry(batch: Batch, step: int | None) -> int:
        """Let a gateway that dies at a step carry the batch on; return how many requests it made."""
        async with dying_gateway(settings) as (gateway, link):
            before = link.num_requests
            if step is not None:
                link.die_at(step, has_effect=has_effect)
            await batch_runner(gateway)._carry(batch.id)
            return link.num_requests - before

    async with start_gateway(batches=limits) as (healthy, url), client_of(url) as client:
        conductor = acting_conductor(transport, redis, namespace)
        async with conductor as acting, acting.running(echo):
            num_steps = await carry(await start_batch(client, LINES), None)
            steps = [1 + index * num_steps // NUM_KILLS for index in range(NUM_KILLS)]
            batches = [await start_batch(client, LINES, metadata={"step": str(step)}) for step in steps]
            await asyncio.gather(*map(carry, batches, steps))
            left = {(await client.batches.retrieve(batch.id)).status for batch in batches}
            assert {"validating", "in_progress"} <= left
            running = asyncio.create_task(batch_runner(healthy).run())
            for batch in batches:
                done = await ended(client, batch)
                assert done.status == "completed"
                assert await answers(client, done) == {"a": "I heard a", "b": "I heard b"}
                assert list(await errors(client, done)) == ["hot"]
                assert done.request_counts is not None
                assert done.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
