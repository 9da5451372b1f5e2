"""Messages to the far end and its answers, by one way."""

from __future__ import annotations

import asyncio
import functools
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from broker_pipeline.errors import RequestTimeoutError
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.wire.transport import Subscription, Transport
from trials.bench.edges.far_end import NEAR, SETTINGS, far_root
from trials.bench.edges.sample import BESIDE_PAUSE_S, BESIDE_WINDOW, Sample
from trials.bench.hop.raw_comparison import bench_envelope

_SETTLE_S = 20.0
_WINDOW = 4
"""Messages under way while the rate is measured."""
_envelope = functools.cache(bench_envelope)


class Exchange:
    """Carries payloads, and knows which of them were answered."""

    def __init__(self, transport: Transport, way: str, near: str) -> None:
        """Send to the far end's root for `way`; answers come to `near`."""
        self.num_answered_bytes = 0
        self._transport, self._subject, self._near = transport, f"{far_root(way)}.work", near
        self._waiting: dict[int, tuple[asyncio.Future[None], int]] = {}
        self._number = 0

    async def send(self, num_bytes: int) -> asyncio.Future[None]:
        """Send a payload, and return what is done when it has been answered."""
        envelope, tensors = _envelope(num_bytes, 1)
        self._number += 1
        answered = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answered, num_bytes
        body = msgspec.structs.replace(envelope, microbatch=self._number, reply=f"{self._near}.results")
        await self._transport.publish(self._subject, body, tensors)
        return answered

    async def hear(self, answers: Subscription[MicrobatchResult]) -> None:
        """Take answers until cancelled."""
        async for message in answers:
            answered, num_bytes = self._waiting.pop(message.body.microbatch)
            self.num_answered_bytes += num_bytes
            answered.set_result(None)

    async def settle(self, way: str) -> None:
        """Return once payloads take the edge. Raises `RequestTimeoutError`."""
        deadline = time.monotonic() + _SETTLE_S
        kind = SETTINGS[way].choice
        while kind != "nats" and kind not in self._transport.counts.carried:
            if time.monotonic() > deadline:
                raise RequestTimeoutError(f"no {kind} edge came up within {_SETTLE_S:g} s")
            await (await self.send(64 * 1024))

    async def trips(self, num_bytes: int, num_trips: int, pause_s: float = 0.0) -> list[float]:
        """Return the seconds of payloads that go one after the other."""
        trips = []
        for _ in range(num_trips):
            await asyncio.sleep(pause_s)
            started = time.perf_counter()
            await (await self.send(num_bytes))
            trips.append(time.perf_counter() - started)
        return trips

    async def send_many(self, num_bytes: int, num_messages: int, window: int) -> None:
        """Send payloads, so many under way at a time, and return when all were answered."""
        under_way: deque[asyncio.Future[None]] = deque()
        for _ in range(num_messages):
            if len(under_way) == window:
                await under_way.popleft()
            under_way.append(await self.send(num_bytes))
        for answered in under_way:
            await answered


async def measure_messages(way: str, nats_url: str, num_bytes: int, num_trips: int, beside_bytes: int) -> Sample:
    """Time payloads one by one and several at once; or beside large ones of `beside_bytes`, where those are given."""
    async with _exchange(way, nats_url) as exchange:
        if beside_bytes:
            async with asyncio.TaskGroup() as tasks:
                flow = tasks.create_task(exchange.send_many(beside_bytes, sys.maxsize, BESIDE_WINDOW))
                await exchange.trips(num_bytes, 2)
                started, before = time.perf_counter(), exchange.num_answered_bytes
                trips = await exchange.trips(num_bytes, num_trips, BESIDE_PAUSE_S)
                num_large = exchange.num_answered_bytes - before - num_bytes * num_trips
                flow.cancel()
            return Sample(trips, num_large / (time.perf_counter() - started))
        await exchange.trips(num_bytes, 2)
        trips = await exchange.trips(num_bytes, num_trips)
        started = time.perf_counter()
        await exchange.send_many(num_bytes, num_trips, _WINDOW)
        return Sample(trips, num_bytes * num_trips / (time.perf_counter() - started))


@asynccontextmanager
async def _exchange(way: str, nats_url: str) -> AsyncIterator[Exchange]:
    near = f"{NEAR}.{secrets.token_hex(4)}"  # several may ask one far end
    async with (
        Transport.open(nats_url, name="bench near") as transport,
        transport.use_edges(near, SETTINGS[way]),
        transport.subscribe(f"{near}.results", MicrobatchResult) as answers,
    ):
        exchange = Exchange(transport, way, near)
        hearing = asyncio.create_task(exchange.hear(answers))
        try:
            await exchange.settle(way)
            yield exchange
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])
