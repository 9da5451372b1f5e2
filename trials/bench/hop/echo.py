"""Round trips between two clients of a NATS server in this process: nats-py's own, and messages through `Transport`."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from broker_pipeline.wire.nats.address import server_addresses
from broker_pipeline.wire.transport import Received, Transport
from broker_pipeline.wire.wire_tensor import WireTensor

RoundTrip = Callable[[], Awaitable[None]]

_NUM_ROUNDS = 20


async def in_turns(trips: Mapping[str, RoundTrip], num_trips: int, *, is_warm: bool = False) -> dict[str, list[float]]:
    """Return the seconds of `num_trips` round trips of each name, which take turns of a few; one more turn warms up."""
    samples: dict[str, list[float]] = {name: [] for name in trips}
    num_each = -(-num_trips // _NUM_ROUNDS)
    for round_number in range(0 if is_warm else -1, _NUM_ROUNDS):
        for name, trip in trips.items():
            for _ in range(num_each):
                started = time.perf_counter()
                await trip()
                if round_number >= 0:
                    samples[name].append(time.perf_counter() - started)
    return samples


@asynccontextmanager
async def raw_echo(nats_url: str, payload: bytes) -> AsyncIterator[RoundTrip]:
    """Yield a round trip of `payload` through two nats-py clients and their callbacks."""
    there, back = (f"bench.{secrets.token_hex(8)}" for _ in range(2))
    async with _client(nats_url) as near, _client(nats_url) as far:
        arrived = asyncio.get_running_loop().create_future()

        async def answer(msg: Msg) -> None:
            await far.publish(back, msg.data)

        async def arrive(_: Msg) -> None:
            arrived.set_result(None)

        await far.subscribe(there, cb=answer)
        await near.subscribe(back, cb=arrive)
        for client in (near, far):
            await client.flush()  # the first overtakes the subscription, the second is sent behind it
            await client.flush()

        async def trip() -> None:
            nonlocal arrived
            arrived = asyncio.get_running_loop().create_future()
            await near.publish(there, payload)
            await arrived

        yield trip


@asynccontextmanager
async def _client(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(server_addresses(nats_url), max_reconnect_attempts=1)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def transport_echo(
    nats_url: str, body: msgspec.Struct, tensors: Mapping[str, WireTensor]
) -> AsyncIterator[RoundTrip]:
    """Yield a round trip of a message through two transports, decoded and checked at both ends."""
    there, back = (f"bench.{secrets.token_hex(8)}" for _ in range(2))
    async with (
        Transport.open(nats_url, name="bench near") as near,
        Transport.open(nats_url, name="bench far") as far,
        far.subscribe(there, type(body)) as asked,
        near.subscribe(back, type(body)) as answered,
        asyncio.TaskGroup() as tasks,
    ):
        echo = tasks.create_task(_echo(asked, far, back))

        async def trip() -> None:
            await near.publish(there, body, tensors)
            await anext(answered)

        try:
            yield trip
        finally:
            echo.cancel()


async def _echo(messages: AsyncIterator[Received[msgspec.Struct]], transport: Transport, subject: str) -> None:
    async for received in messages:
        await transport.publish(subject, received.body, received.tensors)
