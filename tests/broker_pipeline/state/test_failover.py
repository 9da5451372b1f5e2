"""A failover of Redis, with real servers: whatever it leaves the old one as, clients end up at the new one.

The endpoint moves to the promoted replica while connections to the demoted master stay open, as with an address or a
name that moves.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from broker_pipeline.errors import StateError
from broker_pipeline.state.redis_client import RedisClient, open_redis, state_errors
from broker_pipeline.state.script_runner import ScriptRunner
from broker_pipeline.tools.local.servers import EmbeddedRedis
from tests.kit.running.moving_endpoint import MovingEndpoint, moving_endpoint
from tests.kit.waiting import eventually

NUM_CONNECTIONS = 8
NUM_KEYS = 200
UNREACHABLE = ("127.0.0.1", "1")


@dataclass(frozen=True)
class Pair:
    """A master with a replica, and the address that clients use."""

    master: EmbeddedRedis
    replica: EmbeddedRedis
    of_master: RedisClient
    of_replica: RedisClient
    endpoint: MovingEndpoint

    async def promote(self) -> None:
        """Make the replica a master, and lead to it what connects from now on."""
        await self.of_replica.replicaof("NO", "ONE")
        self.endpoint.target = self.replica.url


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with (
        EmbeddedRedis(tmp_path / "master") as master,
        EmbeddedRedis(tmp_path / "replica") as replica,
        open_redis(master.url) as of_master,
        open_redis(replica.url) as of_replica,
        moving_endpoint(master.url) as endpoint,
    ):
        for client in (of_master, of_replica):
            await client.config_set("repl-diskless-sync-delay", 0)
        await of_replica.replicaof(*address(master))

        async def is_in_step() -> bool:
            return (await of_replica.info("replication"))["master_link_status"] == "up"

        await eventually(is_in_step, timeout_s=20)
        yield Pair(master, replica, of_master, of_replica, endpoint)
        master.kill(signal.SIGCONT)


def address(server: EmbeddedRedis) -> tuple[str, str]:
    parts = urlsplit(server.url)
    return str(parts.hostname), str(parts.port)


async def demoted(pair: Pair) -> None:
    await pair.of_master.replicaof(*address(pair.replica))


async def loading(pair: Pair) -> None:
    """A demoted master that went on writing takes the new one's data over, all of them and slowly."""
    for client in (pair.of_master, pair.of_replica):
        await client.mset({f"k{number}": secrets.token_hex(100) for number in range(NUM_KEYS)})
    await pair.of_master.config_set("key-load-delay", 20_000)
    await pair.of_master.config_set("loading-process-events-interval-bytes", 1024)
    await demoted(pair)

    async def is_loading() -> bool:
        return bool((await pair.of_master.info("persistence"))["loading"])

    await eventually(is_loading, timeout_s=20)


async def cut_off(pair: Pair) -> None:
    """A replica that has lost its master, and was told to serve nothing that is old."""
    await pair.of_master.config_set("replica-serve-stale-data", "no")
    await pair.of_master.replicaof(*UNREACHABLE)


async def without_replicas(pair: Pair) -> None:
    """A master that notices that nobody follows it."""
    await pair.of_master.config_set("min-replicas-to-write", 1)


async def mute(pair: Pair) -> None:
    pair.master.kill(signal.SIGSTOP)


async def dead(pair: Pair) -> None:
    pair.master.kill()


def plain_write(client: RedisClient) -> Callable[[], Awaitable[Any]]:
    return lambda: client.set("written", "1", ex=60)


def scripted_write(client: RedisClient) -> Callable[[], Awaitable[Any]]:
    run = ScriptRunner(client, "lease", ["lease", "epoch"], {"instance": "a", "ttl_ms": 10_000})
    return lambda: run("acquire", {"last_epoch": 0}, "cannot take it")


@pytest.mark.parametrize("writer", [plain_write, scripted_write])
@pytest.mark.parametrize("leave", [demoted, loading, cut_off, without_replicas, mute, dead])
async def test_writes_reach_the_new_master_within_seconds(
    pair: Pair,
    leave: Callable[[Pair], Awaitable[None]],
    writer: Callable[[RedisClient], Callable[[], Awaitable[Any]]],
) -> None:
    async with open_redis(pair.endpoint.url, timeout_s=1.0, max_connections=NUM_CONNECTIONS) as client:
        write = writer(client)
        await asyncio.gather(write(), *(client.ping() for _ in range(NUM_CONNECTIONS)))
        await eventually(lambda: pair.endpoint.num_open == NUM_CONNECTIONS)
        await pair.promote()
        await leave(pair)
        started = time.monotonic()
        await eventually(lambda: is_written(write), timeout_s=5)
        took_s = time.monotonic() - started
        # No connection to the old server waits in the pool for its turn to fail.
        await asyncio.gather(*(write() for _ in range(4 * NUM_CONNECTIONS)))
        assert await pair.of_replica.exists("written", "lease")
        print(f"\n{leave.__name__}, {writer.__name__}: {took_s:.2f} s")


async def is_written(write: Callable[[], Awaitable[Any]]) -> bool:
    try:
        with state_errors("cannot write"):
            await write()
    except StateError:
        return False
    return True
