"""Servers that broker-pipeline did not start: Debian's nats-server and redis-server, with their own defaults."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import PROMPT, client_of
from tests.kit.waiting import eventually

_PATH = "/usr/sbin:/usr/bin"
_SERVERS = {name: shutil.which(name, path=_PATH) for name in ("nats-server", "redis-server")}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(None in _SERVERS.values(), reason="apt-get install nats-server redis-server"),
]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def debian_server(directory: Path, name: str, *arguments: str, port: int) -> AsyncIterator[None]:
    program = _SERVERS[name]
    assert program is not None
    child = await ChildProcess.spawn(name, [program, *arguments], log_path=directory / f"{name}.log")
    try:
        await eventually(lambda: is_listening(port), timeout_s=10)
        yield
    finally:
        await child.stop()


async def test_jobs_run_through_debians_servers(tmp_path: Path) -> None:
    nats, redis = free_port(), free_port()
    nats_flags = ("-a", "127.0.0.1", "-p", str(nats), "-js", "-sd", str(tmp_path / "js"))
    redis_flags = ("--port", str(redis), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--appendonly", "yes")
    async with (
        debian_server(tmp_path, "nats-server", *nats_flags, port=nats),
        debian_server(tmp_path, "redis-server", *redis_flags, port=redis),
        tiny_cluster(
            tmp_path / "run",
            DENSE,
            "1,3",
            nats_url=f"nats://127.0.0.1:{nats}",
            redis_url=f"redis://127.0.0.1:{redis}/0",
        ) as cluster,
        client_of(cluster) as client,
    ):
        assert not {"nats", "redis"} & set(cluster.processes)
        pictures = [picture(seed) for seed in range(4)]
        tokens = await client.run(await asyncio.gather(*(client.submit(each, max_tokens=8) for each in pictures)))
        assert tokens == [reference_tokens(DENSE, (each,), PROMPT, 8) for each in pictures]
