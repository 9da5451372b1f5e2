"""Three nats-servers that are one cluster, with JetStream."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.js.errors import Error as JetStreamError

from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.server_binaries import find_nats_server
from tests.kit.waiting import eventually

NUM_SERVERS = 3
_PATIENCE_S = 60.0


@dataclass
class ClusterMember:
    """One server, which keeps its ports and its directory."""

    program: Path
    directory: Path
    name: str
    port: int
    cluster_port: int
    routes: str = ""
    process: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        config = self.directory / f"{self.name}.conf"
        config.write_text(f"""
            server_name: {self.name}
            listen: "127.0.0.1:{self.port}"
            max_payload: 8388608
            max_pending: 536870912
            write_deadline: "60s"
            jetstream {{ store_dir: "{self.directory / self.name}" }}
            cluster {{ name: "three", listen: "127.0.0.1:{self.cluster_port}", routes: [{self.routes}] }}
        """)
        argv = [str(self.program), "--config", str(config)]
        log_path = self.directory / f"{self.name}.log"
        self.process = await ChildProcess.spawn(self.name, argv, log_path=log_path)

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        if self.process is not None:
            await self.process.stop()


@dataclass(frozen=True)
class NatsCluster:
    """A cluster that has a leader."""

    members: tuple[ClusterMember, ...]

    @property
    def url(self) -> str:
        return ",".join(member.url for member in self.members)

    async def leader_of(self, stream: str) -> ClusterMember:
        """Return the server that leads a stream, once it has all replicas and they are up to date."""
        found: list[ClusterMember] = []

        async def is_whole() -> bool:
            found[:] = [leader] if (leader := await self._leader_of(stream)) else []
            return bool(found)

        await eventually(is_whole, timeout_s=_PATIENCE_S)
        return found[0]

    async def _leader_of(self, stream: str) -> ClusterMember | None:
        try:
            async with asyncio.timeout(2):
                client = await nats.connect(self.url.split(","), allow_reconnect=False)
                try:
                    info = await client.jetstream(timeout=1).stream_info(stream)
                finally:
                    await client.close()
        except (TimeoutError, OSError, nats.errors.Error, JetStreamError):
            return None
        cluster = info.cluster
        if cluster is None or len([peer for peer in cluster.replicas or () if peer.current]) < NUM_SERVERS - 1:
            return None
        return next((member for member in self.members if member.name == cluster.leader), None)


@asynccontextmanager
async def nats_cluster(directory: Path, program: Path | None = None) -> AsyncIterator[NatsCluster]:
    """Start three servers; what is killed may be started again."""
    directory.mkdir()  # noqa: ASYNC240
    program = program or find_nats_server()
    members = [
        ClusterMember(program, directory, f"n{number}", free_port(), free_port()) for number in range(NUM_SERVERS)
    ]
    for member in members:
        member.routes = ", ".join(f'"nats://127.0.0.1:{other.cluster_port}"' for other in members)
    cluster = NatsCluster(tuple(members))
    try:
        await asyncio.gather(*(member.start() for member in members))
        await eventually(lambda: _has_jetstream(cluster), timeout_s=_PATIENCE_S)
        yield cluster
    finally:
        await asyncio.gather(*(member.stop() for member in members))


async def _has_jetstream(cluster: NatsCluster) -> bool:
    """Whether streams of three replicas can be made."""
    try:
        async with asyncio.timeout(3):
            client = await nats.connect(cluster.url.split(","), allow_reconnect=False)
            try:
                jetstream = client.jetstream(timeout=1)
                await jetstream.add_stream(name="probe", subjects=["probe"], num_replicas=NUM_SERVERS)
                return await jetstream.delete_stream("probe")
            finally:
                await client.close()
    except (TimeoutError, OSError, nats.errors.Error, JetStreamError):
        return False
