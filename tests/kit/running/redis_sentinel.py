"""A Redis master with replicas, and sentinels that promote one of them when it dies."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.server_binaries import find_redis_server
from tests.kit.authority import redis_tls_lines
from tests.kit.waiting import eventually

SERVICE = "captions"
NUM_EACH = 3
_PATIENCE_S = 60.0
DOWN_AFTER_MS = 800


@dataclass
class RedisMember:
    """A server, or a sentinel: its settings stay in its file, which it rewrites."""

    program: Path
    config: Path
    port: int
    is_sentinel: bool
    secrets: Path | None = None
    """Directory of a host, where it speaks TLS only."""
    process: ChildProcess | None = None

    async def start(self) -> None:
        argv = [str(self.program), str(self.config), *(["--sentinel"] if self.is_sentinel else [])]
        name = self.config.stem
        self.process = await ChildProcess.spawn(name, argv, log_path=self.config.with_suffix(".log"))

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop(grace_s=2.0)

    async def info(self, section: str) -> dict[str, object]:
        """Return what it says of itself; nothing when it does not answer."""
        try:
            async with asyncio.timeout(2), Redis(port=self.port, **self._client_options()) as client:
                return dict(await client.info(section))
        except (RedisError, OSError, TimeoutError):
            return {}

    def _client_options(self) -> dict[str, object]:
        if self.secrets is None:
            return {}
        files = {"ca_certs": "ca.crt", "certfile": "tls.crt", "keyfile": "tls.key"}
        return {"ssl": True} | {f"ssl_{name}": str(self.secrets / file) for name, file in files.items()}


@dataclass(frozen=True)
class SentinelGroup:
    """Servers and sentinels."""

    servers: tuple[RedisMember, ...]
    sentinels: tuple[RedisMember, ...]

    @property
    def url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        scheme = "rediss" if self.servers[0].secrets else "redis"
        return f"{scheme}+sentinel://{addresses}/{SERVICE}"

    async def master_now(self) -> RedisMember:
        """Return the server that says that it is the master."""
        roles = [(await server.info("replication")).get("role") for server in self.servers]
        return self.servers[roles.index("master")]

    async def master(self) -> RedisMember:
        """Return the server that is the master of two replicas, once there is one and all sentinels know it."""
        found: list[RedisMember] = []

        async def is_whole() -> bool:
            found[:] = await self._masters()
            return len(found) == 1 and all([await _knows(each, found[0].port) for each in self.sentinels])

        await eventually(is_whole, timeout_s=_PATIENCE_S)
        return found[0]

    async def start(self) -> None:
        """Start servers, then sentinels: these ask a master for replicas at once, and again only after ten seconds."""
        await asyncio.gather(*(server.start() for server in self.servers))

        async def is_replicated() -> bool:
            return len(await self._masters()) == 1

        await eventually(is_replicated, timeout_s=_PATIENCE_S)
        await asyncio.gather(*(sentinel.start() for sentinel in self.sentinels))
        await self.master()

    async def _masters(self) -> list[RedisMember]:
        """Return the servers that say that they are the master of all others."""
        told = [(server, await server.info("replication")) for server in self.servers]
        whole = "master", NUM_EACH - 1
        return [server for server, info in told if (info.get("role"), info.get("connected_slaves")) == whole]


async def _knows(sentinel: RedisMember, port: int) -> bool:
    master = (await sentinel.info("sentinel")).get("master0")
    if not isinstance(master, dict) or not str(master.get("address")).endswith(f":{port}"):
        return False
    return (master["sentinels"], master["slaves"]) == (NUM_EACH, NUM_EACH - 1)  # one of these replicas takes over


@asynccontextmanager
async def sentinel_group(
    directory: Path, program: Path | None = None, secrets: Path | None = None
) -> AsyncIterator[SentinelGroup]:
    """Start them, with TLS where there are `secrets`; what is killed may be started again."""
    directory.mkdir()  # noqa: ASYNC240
    program = program or find_redis_server()
    first = free_port()
    group = SentinelGroup(
        tuple(_server(directory, program, number, first, secrets) for number in range(NUM_EACH)),
        tuple(_sentinel(directory, program, number, first, secrets) for number in range(NUM_EACH)),
    )
    try:
        await group.start()
        yield group
    finally:
        await asyncio.gather(*(member.stop() for member in (*group.servers, *group.sentinels)))


def _server(directory: Path, program: Path, number: int, first: int, secrets: Path | None) -> RedisMember:
    port = free_port() if number else first
    (home := directory / f"server-{number}").mkdir()
    lines = [
        f'bind 127.0.0.1\n{_port_lines(port, secrets)}\ndir "{home}"\nsave ""\nappendonly yes\nappendfsync everysec',
        "maxmemory-policy noeviction\nrepl-diskless-sync-delay 0",
        f"replicaof 127.0.0.1 {first}\n" if number else "",
    ]
    config = directory / f"server-{number}.conf"
    config.write_text("\n".join(lines))
    return RedisMember(program, config, port, is_sentinel=False, secrets=secrets)


def _sentinel(directory: Path, program: Path, number: int, first: int, secrets: Path | None) -> RedisMember:
    port = free_port()
    config = directory / f"sentinel-{number}.conf"
    config.write_text(f"""\
bind 127.0.0.1
{_port_lines(port, secrets)}
dir "{directory}"
sentinel monitor {SERVICE} 127.0.0.1 {first} 2
sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}
sentinel failover-timeout {SERVICE} 3000
""")
    return RedisMember(program, config, port, is_sentinel=True, secrets=secrets)


def _port_lines(port: int, secrets: Path | None) -> str:
    return f"port {port}" if secrets is None else redis_tls_lines(port, secrets)
