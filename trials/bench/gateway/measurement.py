"""Captions through a gateway with no model behind it: what is measured is everything but the model.

    clients ──HTTP──► gateway, --processes N ──► NATS, Redis ◄── answering processes
    (raw sockets)     (the command itself)                       (begin, end, acknowledge: no tokens)

Everything is a process of its own, so that the system tells what each part costs.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.tools.local.service import LocalService
from trials.bench.cpu_time import CpuClock, resident_bytes
from trials.bench.gateway.answering_process import run_answering
from trials.bench.gateway.client_process import ClientOrder, run_client
from trials.bench.gateway.own_times import average_times, own_times
from trials.bench.gateway.rows import Caption, ClientReport, GatewayBenchSettings, GatewayRow
from trials.bench.spread import Spread
from trials.bench.work import write_pictures

_Started: TypeAlias = tuple[BaseProcess, Connection]

NAMESPACE = "bench"
_WARM_UP_S = 2.0
_START_S = 60.0


async def measure_gateway(settings: GatewayBenchSettings, directory: Path) -> GatewayRow:
    """Start everything in `directory`, measure, stop everything."""
    name = write_pictures(directory, "bench", 1, settings.picture_side)[0]
    picture = (directory / name).read_bytes()
    async with EmbeddedNats(directory / "nats") as nats, EmbeddedRedis(directory / "redis") as redis:
        gateway = _gateway(settings, directory, nats.url, redis.url)
        await gateway.start()
        try:
            parts = {"nats": [nats.process.pid], "redis": [redis.process.pid], "gateway": tree(gateway.process.pid)}
            with _answering(settings, nats.url, redis.url) as answering:
                return await _measure(settings, gateway.facts["url"], picture, parts | {"answering": answering})
        finally:
            await gateway.stop(10.0)


async def _measure(settings: GatewayBenchSettings, url: str, picture: bytes, parts: dict[str, list[int]]) -> GatewayRow:
    with _clients(settings, url, picture) as clients:
        pids = parts | {"clients": [process.pid or 0 for process, _ in clients]}
        await asyncio.sleep(_WARM_UP_S)
        before = await own_times(url)
        clock = CpuClock({f"{part} {pid}": pid for part, each in pids.items() for pid in each})
        began = time.monotonic()
        await asyncio.sleep(settings.seconds)
        ended, used = time.monotonic(), clock.passed()
        own_s = average_times(before, await own_times(url))
        num_bytes = sum(resident_bytes(pid) for pid in parts["gateway"])
        reports = [await asyncio.to_thread(_report_of, pipe) for _, pipe in clients]
    return row_of(settings, reports, used, num_bytes, began, ended, own_s)


def row_of(
    settings: GatewayBenchSettings,
    reports: Sequence[ClientReport],
    used: Mapping[str, float],
    gateway_bytes: int,
    began: float,
    ended: float,
    own_s: dict[str, float],
) -> GatewayRow:
    """Add up what clients saw from `began` to `ended`, and seconds of a core `used`, by part and process."""
    captions = [caption for report in reports for caption in report.captions if began <= caption.ended <= ended]
    refusals: Counter[str] = Counter()
    for report in reports:
        refusals.update(report.refusals)
    cpu_s: Counter[str] = Counter()
    for name, seconds in used.items():
        cpu_s[name.partition(" ")[0]] += seconds  # type: ignore[assignment]
    if not captions:
        raise RuntimeError(f"no caption came back; refusals: {dict(refusals)}")
    submissions, wholes = (
        _seconds(captions, lambda c: c.accepted - c.began),
        _seconds(captions, lambda c: c.ended - c.began),
    )
    return GatewayRow(
        num_processes=settings.num_processes,
        num_captions=len(captions),
        seconds=ended - began,
        submission_s=Spread.of(submissions),
        caption_s=Spread.of(wholes),
        submission_p99_s=submissions[len(submissions) * 99 // 100],
        caption_p99_s=wholes[len(wholes) * 99 // 100],
        cpu_s=dict(cpu_s),
        refusals=dict(refusals),
        gateway_processes_s=tuple(seconds for name, seconds in used.items() if name.startswith("gateway ")),
        own_s=own_s,
        gateway_bytes=gateway_bytes,
    )


def _seconds(captions: Sequence[Caption], of: Callable[[Caption], float]) -> list[float]:
    return sorted(map(of, captions))


def _gateway(settings: GatewayBenchSettings, directory: Path, nats_url: str, redis_url: str) -> LocalService:
    urls = ("--nats-url", nats_url, "--redis-url", redis_url, "--namespace", NAMESPACE)
    num_streams = 2 * (2 * settings.num_in_flight + settings.num_unread)  # one client has half
    own = ("--port", "0", "--processes", str(settings.num_processes), "--max-streams", str(num_streams))
    return LocalService(
        "gateway",
        ("gateway", *urls, *own),
        log_path=directory / "gateway.log",
        ready_path=directory / "gateway.ready",
        env={},
        start_timeout_s=_START_S,
    )


def tree(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(found for child in children for found in tree(int(child)))]


@contextmanager
def _answering(settings: GatewayBenchSettings, nats_url: str, redis_url: str) -> Iterator[list[int]]:
    arguments = (nats_url, redis_url, NAMESPACE, settings.is_streamed)
    with _spawned(run_answering, [arguments] * settings.num_answerers) as started:
        for _, pipe in started:
            if not pipe.poll(_START_S):
                raise TimeoutError("a process that answers jobs did not start")
            pipe.recv_bytes()
        yield [process.pid or 0 for process, _ in started]


@contextmanager
def _clients(settings: GatewayBenchSettings, url: str, picture: bytes) -> Iterator[list[_Started]]:
    share, more = divmod(settings.num_in_flight, settings.num_clients)
    pause_s = settings.num_in_flight / settings.rate if settings.rate else 0.0
    orders = [
        ClientOrder(
            url=url,
            picture=picture,
            num_in_flight=share + (index < more),
            pause_s=pause_s,
            is_streamed=settings.is_streamed,
            is_bulk=settings.is_bulk,
            num_unread=settings.num_unread if index == 0 else 0,
        )
        for index in range(settings.num_clients)
    ]
    with _spawned(run_client, [(msgspec.json.encode(order),) for order in orders]) as started:
        yield started


@contextmanager
def _spawned(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[_Started]]:
    """Run `target` with each of `arguments` and one end of a pipe, until the end of the context."""
    context = multiprocessing.get_context("spawn")
    started: list[_Started] = []
    try:
        for each in arguments:
            here, there = context.Pipe()
            process: BaseProcess = context.Process(target=target, args=(*each, there), daemon=True)
            process.start()
            there.close()
            started.append((process, here))
        yield started
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def _report_of(pipe: Connection) -> ClientReport:
    pipe.send_bytes(b"stop")
    return msgspec.json.decode(pipe.recv_bytes(), type=ClientReport)
