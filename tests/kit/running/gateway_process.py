"""A gateway in a process of its own, or in the test's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from broker_pipeline.config import CommonSettings
from broker_pipeline.tools.local.processes import ChildProcess
from gateway.app import serving
from gateway.settings import MIB, GatewaySettings
from gateway.wiring import open_gateway


@asynccontextmanager
async def gateway_process(
    directory: Path, nats_url: str, redis_url: str, namespace: str, *flags: str, name: str = "gateway"
) -> AsyncIterator[tuple[ChildProcess, str]]:
    """Start one, wait until it is ready, yield it and its URL; kill it at the end if it still runs."""
    ready = directory / f"{name}.ready"
    ready.unlink(missing_ok=True)
    process = await spawn(
        directory, nats_url, redis_url, "--namespace", namespace, "--ready-file", str(ready), *flags, name=name
    )
    try:
        async with asyncio.timeout(60.0):
            while not ready.exists():
                assert process.is_running, process.last_lines()
                await asyncio.sleep(0.02)
        facts = dict(line.split("=", 1) for line in ready.read_text().splitlines())
        yield process, facts["url"]
    finally:
        await process.destroy()


@asynccontextmanager
async def gateway_here(nats_url: str, redis_url: str, namespace: str) -> AsyncIterator[str]:
    """Have one in this process, which starts at once, and yield its URL; it answers while the event loop is free."""
    common = CommonSettings(nats_url=nats_url, redis_url=redis_url, namespace=namespace, drain_s=5.0)
    room = {"queue_max_bytes": 8 * MIB, "media_max_bytes": 64 * MIB, "files_max_bytes": 64 * MIB}
    stopping = asyncio.Event()
    async with (
        open_gateway(GatewaySettings(common=common, port=0, **room), stopping) as gateway,
        serving(gateway) as url,
    ):
        try:
            yield url
        finally:
            stopping.set()


async def until_metrics(url: str, **values: float) -> None:
    """Wait until the gateway's metrics of these names have these values."""
    expected = {f"broker_pipeline_{name} {float(value)}" for name, value in values.items()}
    async with asyncio.timeout(30.0), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}/metrics") as answer:
                if expected <= set((await answer.text()).splitlines()):
                    return
            await asyncio.sleep(0.02)


async def spawn(directory: Path, nats_url: str, redis_url: str, *flags: str, name: str = "gateway") -> ChildProcess:
    """Start one and return at once."""
    argv = [sys.executable, "-m", "broker_pipeline", "gateway", "--nats-url", nats_url, "--redis-url", redis_url]
    small = ["--max-queue-mb", "8", "--max-media-mb", "64"]
    return await ChildProcess.spawn(name, [*argv, *small, *flags], log_path=directory / f"{name}.log")
