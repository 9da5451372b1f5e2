"""One hop: an envelope there and back through `Transport`, beside raw nats-py with as many bytes.

    transport   ping ── envelope of n tensor bytes ──► subject ──► decoded ── the same envelope ──► subject ──► decoded
    raw         ping ── payload of all its bytes ───► subject ──► callback ── the same payload ───► subject ──► callback

Both sides run in this process and on one event loop, so that a round trip is the sum of all that a hop costs, twice.
Raw and transport take turns in short rounds: what else the machine does meets both alike.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
import nats
import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg

from broker_pipeline.bench.spread import Spread
from broker_pipeline.messages import Envelope, Segment, StageTiming
from broker_pipeline.wire.codec import encode
from broker_pipeline.wire.nats_address import server_addresses
from broker_pipeline.wire.parts import whole_pieces
from broker_pipeline.wire.transport import Received, Transport
from broker_pipeline.wire.wire_tensor import WireTensor

RoundTrip = Callable[[], Awaitable[None]]

_NUM_ROUNDS = 10


class HopRow(msgspec.Struct, frozen=True, kw_only=True):
    """One size of message. Seconds one way: half a round trip."""

    num_tensor_bytes: int
    num_segments: int
    num_bytes: int
    """Tensor bytes and metadata together: what the raw message holds as well."""
    raw_s: Spread
    transport_s: Spread

    @property
    def ratio(self) -> float:
        """How many times longer the transport's hop takes."""
        return self.transport_s.median / self.raw_s.median

    @property
    def excess_s(self) -> float:
        """What the transport adds to one hop, in seconds."""
        return self.transport_s.median - self.raw_s.median


def bench_envelope(num_tensor_bytes: int, num_segments: int) -> tuple[Envelope, dict[str, WireTensor]]:
    """Return an envelope as it leaves the first of three stages: `hidden` and `positions` with that many bytes.

    Positions are int32 [3, num_segments]; what remains is bf16 hidden states of one row each.
    """
    root = "bp.main.worker.stage-{}.0123456789abcdef.work"
    segments = tuple(
        Segment(session=secrets.token_hex(12), attempt=1, start=300 + index, count=1, wants_token=True)
        for index in range(num_segments)
    )
    envelope = Envelope(
        pipeline="main",
        fingerprint="0" * 64,
        epoch=1,
        microbatch=12345,
        route=(root.format(1), root.format(2)),
        reply="bp.main.conductor.0123456789abcdef.results",
        budget_s=29.123456,
        segments=segments,
        timings=(StageTiming(worker="stage-0", queue_s=0.000123, compute_s=0.00456),),
    )
    positions = np.zeros((3, num_segments), np.int32)
    num_hidden_bytes = max(num_tensor_bytes - positions.nbytes, 2 * num_segments)
    width = num_hidden_bytes // (2 * num_segments)
    hidden = np.random.default_rng(0).integers(0, 256, 2 * width * num_segments, np.uint8)
    return envelope, {
        "positions": WireTensor.from_numpy(positions),
        "hidden": WireTensor("bfloat16", (num_segments, width), hidden.data),
    }


async def measure_hop(nats_url: str, num_tensor_bytes: int, num_segments: int, *, num_trips: int) -> HopRow:
    """Measure round trips of one size over a NATS server, after a tenth as many for warming up."""
    envelope, tensors = bench_envelope(num_tensor_bytes, num_segments)
    whole = b"".join(whole_pieces(encode(envelope, tensors)))
    async with _raw_echo(nats_url, whole) as raw, _transport_echo(nats_url, envelope, tensors) as through:
        samples = await _in_turns({"raw": raw, "transport": through}, num_trips)
    return HopRow(
        num_tensor_bytes=num_tensor_bytes,
        num_segments=num_segments,
        num_bytes=len(whole),
        raw_s=Spread.of(samples["raw"]).scaled(0.5),
        transport_s=Spread.of(samples["transport"]).scaled(0.5),
    )


async def _in_turns(trips: Mapping[str, RoundTrip], num_trips: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in trips}
    num_each = -(-num_trips // _NUM_ROUNDS)
    for round_number in range(_NUM_ROUNDS + 1):
        for name, trip in trips.items():
            for _ in range(num_each):
                started = time.perf_counter()
                await trip()
                if round_number:  # the first round warms up
                    samples[name].append(time.perf_counter() - started)
    return samples


@asynccontextmanager
async def _raw_echo(nats_url: str, payload: bytes) -> AsyncIterator[RoundTrip]:
    """Yield a round trip of `payload` through two nats-py clients and their callbacks."""
    there, back = (f"bench.{secrets.token_hex(8)}" for _ in range(2))
    async with _client(nats_url) as near, _client(nats_url) as far:
        arrived = _Arrival()

        async def answer(msg: Msg) -> None:
            await far.publish(back, msg.data)

        async def arrive(_: Msg) -> None:
            arrived.arrive()

        await far.subscribe(there, cb=answer)
        await near.subscribe(back, cb=arrive)
        for client in (near, far):
            await client.flush()  # the first overtakes the subscription, the second is sent behind it
            await client.flush()

        async def trip() -> None:
            waiting = arrived.expect()
            await near.publish(there, payload)
            await waiting

        yield trip


@asynccontextmanager
async def _client(nats_url: str) -> AsyncIterator[Client]:
    client = await nats.connect(server_addresses(nats_url), max_reconnect_attempts=1)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def _transport_echo(
    nats_url: str, envelope: Envelope, tensors: Mapping[str, WireTensor]
) -> AsyncIterator[RoundTrip]:
    """Yield a round trip of an envelope through two transports, decoded and checked at both ends."""
    there, back = (f"bench.{secrets.token_hex(8)}" for _ in range(2))
    async with (
        Transport.open(nats_url, name="bench near") as near,
        Transport.open(nats_url, name="bench far") as far,
        far.subscribe(there, Envelope) as asked,
        near.subscribe(back, Envelope) as answered,
        asyncio.TaskGroup() as tasks,
    ):
        arrived = _Arrival()
        echo = tasks.create_task(_echo(asked, far, back))
        taking = tasks.create_task(_take(answered, arrived))

        async def trip() -> None:
            waiting = arrived.expect()
            await near.publish(there, envelope, tensors)
            await waiting

        try:
            yield trip
        finally:
            echo.cancel()
            taking.cancel()


async def _echo(messages: AsyncIterator[Received[Envelope]], transport: Transport, subject: str) -> None:
    async for received in messages:
        await transport.publish(subject, received.body, received.tensors)


async def _take(messages: AsyncIterator[Received[Envelope]], arrived: _Arrival) -> None:
    async for _ in messages:
        arrived.arrive()


class _Arrival:
    """The end of a round trip."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def expect(self) -> asyncio.Future[None]:
        self._waiting = asyncio.get_running_loop().create_future()
        return self._waiting

    def arrive(self) -> None:
        if not self._waiting.done():
            self._waiting.set_result(None)
