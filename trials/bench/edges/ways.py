"""Every way from this process to the far end, measured in its turn."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker_pipeline.errors import NoResponderError, RequestTimeoutError
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer
from broker_pipeline.wire.transport import Transport
from trials.bench.edges.exchange import measure_messages
from trials.bench.edges.far_end import RAW, SETTINGS, run_far_end
from trials.bench.edges.raw import measure_memcpy, measure_raw_tcp
from trials.bench.edges.sample import Sample

WAYS = ("memcpy", "raw TCP", *SETTINGS)
"""Raw TCP comes before what is compared with it."""
WAYS_BETWEEN_HOSTS = tuple(way for way in WAYS if way not in {"memcpy", "shm"})
_SPAWN = multiprocessing.get_context("spawn")
_FAR_END_S = 60.0


@asynccontextmanager
async def far_end(nats_url: str, *, is_elsewhere: bool) -> AsyncIterator[str]:
    """Yield at which address the far end reads bare sockets; it is a process of this machine unless `is_elsewhere`."""
    if is_elsewhere:
        yield await _ask(nats_url)
        return
    process = _SPAWN.Process(target=run_far_end, args=(nats_url,), daemon=True)
    process.start()
    try:
        yield await _ask(nats_url)
    finally:
        process.kill()
        process.join()


async def measure_way(
    way: str, nats_url: str, raw_address: str, num_bytes: int, num_trips: int, beside_bytes: int = 0
) -> Sample:
    """Carry payloads one after the other and then several at once, or beside large ones."""
    if way == "memcpy":
        return measure_memcpy(num_bytes, num_trips)
    if way == "raw TCP":
        return await asyncio.to_thread(measure_raw_tcp, raw_address, num_bytes, num_trips, beside_bytes)
    return await measure_messages(way, nats_url, num_bytes, num_trips, beside_bytes)


async def _ask(nats_url: str) -> str:
    """Return the address, which is known once everything else is listened to. Raises `RequestTimeoutError`."""
    deadline = time.monotonic() + _FAR_END_S
    async with Transport.open(nats_url, name="bench near") as transport:
        while time.monotonic() < deadline:
            try:
                answer = await transport.request(RAW, EdgeAsk(kinds=()), reply_type=EdgeOffer, timeout_s=1.0)
            except (NoResponderError, RequestTimeoutError):
                await asyncio.sleep(0.05)
                continue
            assert answer.body.tcp is not None
            return answer.body.tcp.addresses[0]
    raise RequestTimeoutError(
        f"nobody answers at {nats_url} within {_FAR_END_S:g} s: is `bench edges --answer` running?"
    )
