"""Ways from this process to another, each as a function that carries one payload and waits for a few bytes back."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import numpy as np

from broker_pipeline.errors import RequestTimeoutError
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.wire.edges.settings import EdgeChoice, EdgeSettings
from broker_pipeline.wire.transport import Transport
from trials.bench.edges.far_end import FAR, NEAR, answer_messages, read_socket
from trials.bench.hop.raw_comparison import bench_envelope

WAYS = ("memcpy", "raw TCP", "shm", "tcp", "tcp, TLS off", "nats")
_SETTINGS: dict[str, tuple[EdgeChoice, bool]] = {
    "shm": ("shm", True),
    "tcp": ("tcp", True),
    "tcp, TLS off": ("tcp", False),
    "nats": ("nats", True),
}
_SPAWN = multiprocessing.get_context("spawn")
_SETTLE_S = 20.0
_WINDOW = 4
"""Messages under way while the rate is measured."""


class Sample(msgspec.Struct, frozen=True):
    """What one way did with one size."""

    trips_s: list[float]
    """There, and a few bytes back."""
    bytes_per_s: float
    """With several under way."""


async def measure_way(way: str, nats_url: str, num_bytes: int, num_trips: int) -> Sample:
    """Carry payloads one after the other, and then several at once."""
    if way == "memcpy":
        return _memcpy(num_bytes, num_trips)
    if way == "raw TCP":
        return await asyncio.to_thread(_raw_tcp, num_bytes, num_trips)
    choice, is_encrypted = _SETTINGS[way]
    settings = EdgeSettings(choice, ring_bytes=256 * 2**20, is_encrypted=is_encrypted)
    async with _transport(nats_url, settings, num_bytes) as (transport, send, answers):
        deadline = time.monotonic() + _SETTLE_S
        while choice != "nats" and choice not in transport.counts.carried:
            if time.monotonic() > deadline:
                raise RequestTimeoutError(f"no {choice} edge came up within {_SETTLE_S:g} s")
            await send()
            await anext(answers)
        trips = []
        for _ in range(num_trips):
            started = time.perf_counter()
            await send()
            await anext(answers)
            trips.append(time.perf_counter() - started)
        started = time.perf_counter()
        for number in range(num_trips + _WINDOW):
            if number < num_trips:
                await send()
            if number >= _WINDOW:
                await anext(answers)
        return Sample(trips, num_bytes * num_trips / (time.perf_counter() - started))


@asynccontextmanager
async def _transport(
    nats_url: str, settings: EdgeSettings, num_bytes: int
) -> AsyncIterator[tuple[Transport, Callable[[], Awaitable[None]], AsyncIterator[Any]]]:
    envelope, tensors = bench_envelope(num_bytes, 1)
    with _process(answer_messages, nats_url, settings) as listening:
        await asyncio.to_thread(listening)
        async with (
            Transport.open(nats_url, name="bench near") as transport,
            transport.use_edges(NEAR, settings),
            transport.subscribe(f"{NEAR}.results", MicrobatchResult) as answers,
        ):
            yield transport, lambda: transport.publish(f"{FAR}.work", envelope, tensors), answers


def _raw_tcp(num_bytes: int, num_trips: int) -> Sample:
    data = np.ones(num_bytes, np.uint8).data
    header = num_bytes.to_bytes(8, "little")
    with _process(read_socket) as listening, socket.create_connection(("127.0.0.1", listening())) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send() -> None:
            connection.sendall(header)
            connection.sendall(data)

        trips = []
        for _ in range(num_trips):
            started = time.perf_counter()
            send()
            connection.recv(1)
            trips.append(time.perf_counter() - started)
        started = time.perf_counter()
        for _ in range(num_trips):
            send()
        left = num_trips
        while left:
            left -= len(connection.recv(left))
        return Sample(trips, num_bytes * num_trips / (time.perf_counter() - started))


def _memcpy(num_bytes: int, num_trips: int) -> Sample:
    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
    trips = []
    for _ in range(num_trips):
        started = time.perf_counter()
        target[:] = source
        trips.append(time.perf_counter() - started)
    return Sample(trips, num_bytes * num_trips / sum(trips))


@contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[Callable[[], Any]]:
    """Run a function in a process of its own; yield what waits for the first thing that it says."""
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    try:
        yield here.recv
    finally:
        process.kill()
        process.join()
        here.close()
