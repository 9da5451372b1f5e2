"""A NATS server and a Redis server of one's own, from what a plain install brings.

    async with EmbeddedNats(directory / "nats") as nats, EmbeddedRedis(directory / "redis") as redis:
        ...  # nats.url, redis.url

Both listen on the loopback interface only unless they are given another place, keep what they hold in their directory,
and die with this process. Started again on the same directory they still have every job.

Settings differ from the servers' defaults where the defaults lose data: JetStream syncs every write, Redis keeps an
append-only file and never evicts.
"""

import asyncio
import contextlib
import secrets
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import aiohttp
import orjson

from broker_pipeline.errors import ServerStartError
from broker_pipeline.process.private_files import write_private
from broker_pipeline.security.server_configs import ADMIN, MAX_PAYLOAD_BYTES, ServerAccess
from broker_pipeline.tools.local.directory_lock import DirectoryLock
from broker_pipeline.tools.local.place import LOOPBACK, Place, free_port
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.server_binaries import find_nats_server, find_redis_server
from broker_pipeline.tools.local.supervisor import Trouble

_POLL_S = 0.01
_PROBE_S = 1.0
_NUM_PORT_TRIES = 5
_ROOM_BYTES = 32 * 1024 * 1024
"""On a disk that was full; less would be full again at once."""


class EmbeddedServer(ABC):
    """Start, readiness and end of one server; what differs between servers is in the subclasses."""

    name: str
    scheme: str
    env: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        place: Place = LOOPBACK,
        log_path: Path | None = None,
        start_timeout_s: float = 30.0,
        access: ServerAccess | None = None,
    ) -> None:
        """Prepare a server that keeps what it holds in `directory`, which is made when missing.

        Without `port` it takes a free one and keeps it across `restart`. Its log goes to `log_path`, else into the
        directory. `access` says who may do what; without it everybody who reaches the server may do everything.
        """
        self.directory = directory.absolute()
        self.log_path = log_path or self.directory / f"{self.name}.log"
        self._lock = DirectoryLock(self.directory)
        self._start_timeout_s = start_timeout_s
        self._port: int | None = port
        self._place = place
        self._access = access
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        """Where clients connect, once started."""
        return self._url("")

    @property
    def admin_url(self) -> str:
        """The same for whoever started it, and may do everything: a secret."""
        return self._url("" if self._access is None else f"{ADMIN}:{self._access.admin_password}@")

    def _url(self, user: str) -> str:
        if self._port is None:
            raise RuntimeError(f"{self.name} has not been started")
        return f"{self.scheme}://{user}{self._place.host}:{self._port}"

    @property
    def process(self) -> ChildProcess:
        """The running server."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process

    async def start(self) -> str:
        """Start, wait until it answers, return the URL. Raises `ServerStartError` with the log's last lines."""
        if self._process is not None and self._process.is_running:
            raise RuntimeError(f"{self.name} is running already")
        self._lock.acquire()
        try:
            return await self._start()
        except BaseException:
            self._lock.release()
            raise

    async def _start(self) -> str:
        for tries_left in reversed(range(_NUM_PORT_TRIES)):
            try:
                argv = [*self._place.prefix, *self._prepare(self._port)]
                self._process = await ChildProcess.spawn(self.name, argv, log_path=self.log_path, env=self.env)
            except OSError as error:
                raise ServerStartError(f"{self.name} did not start: {error}") from error
            try:
                self._port = await self._wait_ready(self._process)
            except _PortTakenError as error:
                if self._port is not None or not tries_left:
                    raise self._process.failure(f"did not start: {error}") from error
            except BaseException:
                await self._process.destroy()
                raise
            else:
                return self.url
        raise AssertionError("the last try returns or raises")

    async def stop(self, grace_s: float = 10.0) -> None:
        """End the server in order; what it held stays in the directory."""
        if self._process is not None:
            await self._process.stop(grace_s)
        self._lock.release()

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Send the server a signal, as a fault would."""
        self.process.kill(sig)

    async def restart(self) -> str:
        """Start again on the same directory and port, after ending what still runs."""
        await self.stop()
        return await self.start()

    async def trouble(self) -> Trouble | None:
        """Say why it has to be started again although it runs, or why it ended; None while all is well."""
        return None

    def _no_room(self, reason: str) -> Trouble:
        has_room = shutil.disk_usage(self.directory).free >= _ROOM_BYTES
        return Trouble(f"stores nothing: {reason}; with room on {self.directory} it is started again", has_room)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _wait_ready(self, process: ChildProcess) -> int:
        deadline = time.monotonic() + self._start_timeout_s
        while process.is_running:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                if (port := await self._probe(process)) is not None:
                    return port
            if time.monotonic() > deadline:
                raise process.failure(f"did not start: not ready after {self._start_timeout_s:g} s")
            await asyncio.sleep(_POLL_S)
        await process.wait()
        if any("address already in use" in line.lower() for line in process.last_lines()):
            raise _PortTakenError(f"port {self._port or 'chosen'} is in use")
        raise process.failure("did not start")

    @abstractmethod
    def _prepare(self, port: int | None) -> Sequence[str]:
        """Write what the server needs into the directory and return its command line."""

    @abstractmethod
    async def _probe(self, process: ChildProcess) -> int | None:
        """Return the port once the server answers there, `None` or `OSError` while it does not."""


class EmbeddedNats(EmbeddedServer):
    """nats-server with JetStream. Its ports come from the file that it writes, so a random port has no race."""

    name = "nats-server"
    _monitoring_url = ""
    _monitoring_path = ""
    scheme = "nats"
    token: str | None = None
    """What clients have to bring in front of the address, where it is set before the start: `nats://TOKEN@HOST`."""

    def _prepare(self, port: int | None) -> Sequence[str]:
        ports = self.directory / "ports"
        ports.mkdir(exist_ok=True)
        for stale in ports.glob("*.ports"):
            stale.unlink(missing_ok=True)
        config = self.directory / "nats-server.conf"
        # Monitoring asks for no password, and tells every account of this machine who listens to what.
        self._monitoring_path = f"/{secrets.token_urlsafe(16)}"
        text = _nats_config(
            self.directory, self._place.host, -1 if port is None else port, self.token, self._monitoring_path
        )
        write_private(config, text + ("" if self._access is None else self._access.nats_authorization()))
        return [str(find_nats_server()), "--config", str(config)]

    async def _probe(self, process: ChildProcess) -> int | None:
        urls = _read_ports_file(self.directory / "ports", process.pid)
        if urls is None:
            return None
        self._monitoring_url = urls["monitoring"][0] + self._monitoring_path
        port = int(urls["nats"][0].rpartition(":")[2])
        banner = await _exchange(self._place.host, port, b"")
        facts = orjson.loads(banner.removeprefix(b"INFO "))
        return port if facts.get("jetstream") else None

    async def trouble(self) -> Trouble | None:
        """Say what JetStream cannot write. After a full disk it stores nothing until it is started again with room."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PROBE_S)) as http,
                http.get(f"{self._monitoring_url}/healthz") as answer,
            ):
                reason = None if answer.status == 200 else str((await answer.json()).get("error"))
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None  # it ends, or is busy
        if reason is None:
            return None
        return self._no_room(reason)


class EmbeddedRedis(EmbeddedServer):
    """redis-server or valkey-server with an append-only file, synced before it answers, that never evicts."""

    name = "redis-server"
    scheme = "redis"
    # PyPI's build has no jemalloc, and a third of its time went into glibc's malloc: with larger caches a job takes an
    # eighth less. Other builds ignore this.
    env: ClassVar[Mapping[str, str]] = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=2000:glibc.malloc.tcache_max=8192"}

    def _prepare(self, port: int | None) -> Sequence[str]:
        self._listen_port = free_port() if port is None else port
        settings = {
            "bind": self._place.host,
            "port": str(self._listen_port),
            # With it and without a password, Redis answers nobody but the loopback interface.
            "protected-mode": "yes" if self._place == LOOPBACK else "no",
            "dir": str(self.directory),
            "appendonly": "yes",
            # With `everysec` a slow disk puts writes off for up to two seconds, and a kill loses what was answered.
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "hash-max-listpack-value": "4096",  # a job that waits takes two thirds of the memory
            "daemonize": "no",
        }
        if self._access is not None:
            users = self.directory / "users.acl"
            write_private(users, self._access.redis_users())
            settings["aclfile"] = str(users)
        flags = [text for key, value in settings.items() for text in (f"--{key}", value)]
        return [str(find_redis_server()), *flags]

    async def _probe(self, process: ChildProcess) -> int | None:
        # It names its pid, so that a stranger on a port that was free a moment ago is not taken for it. PING is refused
        # while the append-only file is read.
        host, port = self._place.host, self._listen_port
        login = b"" if self._access is None else f"AUTH {ADMIN} {self._access.admin_password}\r\n".encode()
        answer = await _exchange(host, port, login + b"INFO server\r\n", until=b"\r\nprocess_id:")
        if answer.strip() != str(process.pid).encode():
            return None
        until = b"+OK\r\n" if login else b""
        return port if await _exchange(host, port, login + b"PING\r\n", until=until) == b"+PONG\r\n" else None

    async def trouble(self) -> Trouble | None:
        """Say that it ended since it could not write: with `always` it neither answers nor lives then."""
        if self.process.is_running:
            return None
        has_said = "aof write error" in "".join(self.process.last_lines()).lower()
        return self._no_room("the append-only file could not be written") if has_said else None


class _PortTakenError(Exception):
    pass


def _nats_config(directory: Path, host: str, port: int, token: str | None, monitoring_path: str) -> str:
    who = f"authorization {{ token: {orjson.dumps(token).decode()} }}" if token else ""
    return f"""\
{who}
listen: "{host}:{port}"
http: "{LOOPBACK.host if token else host}:-1"
server_name: "broker-pipeline"
ports_file_dir: {_quoted(directory / "ports")}
max_payload: {MAX_PAYLOAD_BYTES}
max_pending: {512 * 1024 * 1024}
write_deadline: "60s"
jetstream {{
  store_dir: {_quoted(directory / "jetstream")}
  sync_interval: always
}}
http_base_path: "{monitoring_path}"
"""


def _quoted(path: Path) -> str:
    """Return a path as nats-server reads it: a string of JSON, but without escapes by a character's number."""
    return orjson.dumps(str(path)).decode()


def _read_ports_file(directory: Path, pid: int) -> dict[str, list[str]] | None:
    """Return where the server listens, by what for."""
    for path in directory.glob(f"*_{pid}.ports"):
        with contextlib.suppress(orjson.JSONDecodeError):  # still being written
            return {str(what): urls for what, urls in orjson.loads(path.read_bytes()).items()}
    return None


async def _exchange(host: str, port: int, question: bytes, until: bytes = b"") -> bytes:
    """Connect, send `question`, skip everything up to `until`, return the rest of that line."""
    async with asyncio.timeout(_PROBE_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(question)
            if until:
                await reader.readuntil(until)
            return await reader.readuntil(b"\r\n")
        finally:
            writer.close()
