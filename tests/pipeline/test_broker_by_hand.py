"""NATS and Redis as docs/operations.md has people start them, typed as it stands there, with Debian's packages."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats

from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.storage.jobs import JobQueue, QueueDepth
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.wire.transport import Transport
from tests.kit.documents import code_blocks
from tests.kit.running.debian_servers import needs_debians_servers
from tests.kit.waiting import eventually

pytestmark = needs_debians_servers

_INSTALLING, BY_HAND, AS_SERVICES = code_blocks("docs/operations.md", "## NATS and Redis by hand")
UNITS = Path("/lib/systemd/system")
REDIS_CONF = Path("/etc/redis/redis.conf").read_text() if Path("/etc/redis/redis.conf").exists() else ""


class Places:
    """Directories and ports of a test, in place of those that the document names."""

    def __init__(self, root: Path) -> None:
        self.ports = {"4222": str(free_port()), "6379": str(free_port())}
        self.root = root

    def moved(self, script: str) -> str:
        for port, free in self.ports.items():
            script = script.replace(port, free)
        for folder in ("/srv/broker", "/var/", "/run/", "/etc/"):
            script = script.replace(folder, f"{self.root}{folder}")
        return script

    @property
    def urls(self) -> tuple[str, str]:
        return f"nats://127.0.0.1:{self.ports['4222']}", f"redis://127.0.0.1:{self.ports['6379']}/0"


@asynccontextmanager
async def running(script: str) -> AsyncIterator[None]:
    """Run a script, whatever it starts included."""
    shell = await asyncio.create_subprocess_exec("bash", "-euc", f"{script}\nwait", start_new_session=True)
    try:
        yield
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        await shell.wait()


async def check_servers(places: Places) -> None:
    """Both take what a pipeline gives them, and keep it on disk."""
    nats_url, redis_url = places.urls

    async def are_there() -> bool:
        for port in places.ports.values():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(port))
            except OSError:
                return False
            writer.close()
        return True

    await eventually(are_there)
    client = await nats.connect(nats_url)
    assert client.max_payload == 8 * 2**20
    await client.close()
    async with Transport.open(nats_url, name="test") as transport, open_redis(redis_url) as redis:
        queue = JobQueue(transport, "by-hand", max_bytes=2**20)
        await queue.ensure()
        assert await queue.depth() == QueueDepth(num_waiting=0, num_in_progress=0)
        settings = await redis.config_get("appendonly", "appendfsync", "maxmemory-policy")
        assert settings == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


async def test_started_by_hand_they_serve(tmp_path: Path) -> None:
    places = Places(tmp_path)
    async with running(places.moved(BY_HAND)):
        await check_servers(places)
    assert (tmp_path / "srv/broker/jetstream/jetstream").is_dir()
    assert list((tmp_path / "srv/broker/redis/appendonlydir").iterdir())


async def test_as_debians_services_they_serve(tmp_path: Path) -> None:
    """What systemd would start is started here, with the packages' own settings and what the document adds."""
    places = Places(tmp_path)
    for folder in ("etc/redis", "srv/broker", "var/lib/redis", "var/log/redis", "run/redis", "var/lib/nats"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/redis/redis.conf").write_text(places.moved(REDIS_CONF))
    writes_config = BY_HAND.split("/usr/sbin/nats-server")[0]
    changes = [line for line in AS_SERVICES.splitlines() if not line.startswith(("install ", "systemctl "))]
    starts = [f"{_exec_start(UNITS / f'{name}.service')} &" for name in ("nats-server", "redis-server")]
    async with running(places.moved("\n".join([writes_config, *changes, *starts]))):
        await check_servers(places)


def _exec_start(unit: Path) -> str:
    line = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    return line.removeprefix("ExecStart=").replace(
        "--supervised systemd ", ""
    )  # `--daemonize no` keeps it in our session
