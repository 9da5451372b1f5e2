"""A whole pipeline on one machine: servers, gateway, conductor, vision workers and stages, each in its own process.

    settings = LocalSettings(model=artifact, stages=balanced_cut(artifact, 3), data_dir=directory)
    async with LocalCluster(settings) as cluster:
        ...  # cluster.gateway_url; cluster.processes["stage-1"].kill()

    start   nats, redis ──► gateways, conductors, vision workers, stages (together) ──► gateways say that jobs would run
    stop    gateways ──► conductors ──► vision workers ──► stages ──► redis ──► nats

NATS and Redis are embedded unless their URLs are given. What they hold stays in the data directory, so that a pipeline
started again there goes on with the jobs it had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from broker_pipeline.client.gateway_client import fetch_refusal
from broker_pipeline.client.operator_token import REDIS_URL_FILE, make_token, noted_gateways
from broker_pipeline.errors import ServerStartError
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.process.private_files import write_private
from broker_pipeline.security.host_folder import new_password, users_in
from broker_pipeline.security.loopback import is_loopback
from broker_pipeline.security.secrets_directory import local_secrets
from broker_pipeline.security.server_configs import ServerAccess
from broker_pipeline.tools.local.directory_lock import DirectoryLock
from broker_pipeline.tools.local.place import LOOPBACK, Place, free_port
from broker_pipeline.tools.local.plan import LocalSettings, PlannedService, num_threads, plan_services, role_of
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis, EmbeddedServer
from broker_pipeline.tools.local.service import LocalService
from broker_pipeline.tools.local.supervisor import Program, SupervisedProgram, start_together

_STOP_MARGIN_S = 1.0
"""For a part that has nothing to drain, or has just drained for as long as it may."""
_READY_TIMEOUT_S = 60.0
_READY_POLL_S = 0.1
_WORKERS = ("vision", "stage")
_STOP_ORDER = ("gateway", "conductor", "vision", "stage", "redis", "nats")

ChangeListener = Callable[[SupervisedProgram], None]


class LocalCluster:
    """The running pipeline. Leaving the context stops everything, in order."""

    def __init__(
        self,
        settings: LocalSettings,
        *,
        places: Mapping[str, Place] | None = None,
        on_change: ChangeListener = lambda _: None,
    ) -> None:
        """Prepare a pipeline that runs on the loopback interface, or each program at its place in `places`.

        Servers of its own have no certificates: at another address than loopback they let everybody in, which is for
        networks that nobody else is in. `on_change` is called with each program whose state changes.
        """
        self.settings = settings
        self.processes: dict[str, SupervisedProgram] = {}
        """By name: nats, redis (where embedded), gateway-0, conductor-0, vision-0 …, stage-0 …"""
        self._places = places or {}
        self._on_change = on_change
        self._lock = DirectoryLock(settings.data_dir)
        self._servers: dict[str, EmbeddedServer] = {}
        self._secrets = settings.secrets
        self._admin_password = new_password()
        self._gateways: list[LocalService] = []
        self._watching: asyncio.Task[None] | None = None
        self._notes = ExitStack()

    @property
    def nats_url(self) -> str:
        """Where NATS listens; of an own server with what lets one do everything there."""
        return self.settings.nats_url or self._servers["nats"].admin_url

    @property
    def redis_url(self) -> str:
        """Where Redis listens; of an own server with what lets one do everything there."""
        return self.settings.redis_url or self._servers["redis"].admin_url

    @property
    def gateway_url(self) -> str:
        """Where the first gateway listens."""
        return self.gateway_urls[0]

    @property
    def gateway_urls(self) -> tuple[str, ...]:
        """Where the gateways listen."""
        urls = tuple(gateway.facts["url"] for gateway in self._gateways if "url" in gateway.facts)
        if not urls:
            raise RuntimeError("no gateway has been started")
        return urls

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything and wait until jobs would run. Raises `ServerStartError`; `stop` has to follow anyway."""
        await self.start_servers()
        await self.start_services()

    async def start_servers(self) -> None:
        """Start what keeps jobs and results, so that it can be looked at before anything works on them."""
        self._lock.acquire()
        _set_aside(self._log_dir)
        self._secrets = self._find_secrets()
        if self.settings.nats_url is None:
            self._add_server("nats", EmbeddedNats, "job queue and messages")
        if self.settings.redis_url is None:
            self._add_server("redis", EmbeddedRedis, "session state")
        await start_together(self.processes.values())
        self._notes.enter_context(_noted(self.settings.data_dir / REDIS_URL_FILE, self.redis_url))

    async def start_services(self) -> None:
        """Start the rest and wait until jobs would run."""
        token = make_token(self.settings.data_dir)
        services = [self._add_service(planned) for planned in self._plan()]
        await start_together(services)
        self._notes.enter_context(noted_gateways(self.gateway_urls, token))
        self._watching = asyncio.create_task(self._watch())
        await self.until_ready()

    async def wait_failed(self) -> None:
        """Wait until a program can never run again and raise its `ServerStartError`."""
        assert self._watching is not None, "not started"
        with raising_first_error():
            await asyncio.shield(self._watching)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Break the body off with the `ServerStartError` of a program that can never run again."""
        with raising_first_error():
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self.wait_failed())
                try:
                    yield
                finally:
                    watching.cancel()

    async def until_ready(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait until every program is ready, and every gateway would take a job and have it run.

        Raises `ServerStartError` naming what is not, at once where it can never be.
        """
        deadline = time.monotonic() + timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            while (missing := await self._missing(http)) is not None:
                if time.monotonic() > deadline:
                    raise ServerStartError(f"not ready after {timeout_s:g} s: {missing}")
                await asyncio.sleep(_READY_POLL_S)

    async def _missing(self, http: aiohttp.ClientSession) -> str | None:
        for name, program in self.processes.items():
            if program.state == "failed":
                raise ServerStartError(program.detail)
            if program.state != "ready":
                return f"{name} is {program.state} {program.detail}".rstrip()
        refusals = [await fetch_refusal(http, url) for url in self.gateway_urls]
        return next((refusal for refusal in refusals if refusal is not None), None)

    async def stop(self) -> None:
        """Stop everything in order, within one `drain_s` in all. When cancelled meanwhile, kill everything at once."""
        deadline = time.monotonic() + self.settings.drain_s
        try:
            await self._stop_watching()
            for role in _STOP_ORDER:
                group = [program for name, program in self.processes.items() if role_of(name) == role]
                grace_s = max(0.0, deadline - time.monotonic()) + _STOP_MARGIN_S
                await asyncio.gather(*(program.stop(grace_s) for program in group))
        except asyncio.CancelledError:
            await self.destroy()
            raise
        self._notes.close()
        self._lock.release()

    async def destroy(self) -> None:
        """Kill every process at once."""
        await self._stop_watching()
        await asyncio.gather(*(program.stop(0) for program in self.processes.values()))
        self._notes.close()
        self._lock.release()

    def _find_secrets(self) -> Path | None:
        """Return what services show the servers: given, or made where all servers are our own, on loopback."""
        settings = self.settings
        are_ours = settings.nats_url is None and settings.redis_url is None
        are_local = all(is_loopback(self._places.get(name, LOOPBACK).host) for name in ("nats", "redis"))
        if settings.secrets is None and are_ours and are_local:
            return local_secrets(settings.data_dir.absolute() / "secrets" / settings.namespace, settings.namespace)
        return settings.secrets

    @property
    def _access(self) -> ServerAccess | None:
        if self._secrets is None:
            return None
        return ServerAccess(users_in(self._secrets), self.settings.namespace, self._admin_password)

    def _add_server(self, name: str, kind: type[EmbeddedServer], what: str) -> None:
        place, log_path = self._places.get(name, LOOPBACK), self._log_dir / f"{name}.log"
        self._servers[name] = kind(self.settings.data_dir / name, place=place, log_path=log_path, access=self._access)
        self._add(name, self._servers[name], what)

    def _plan(self) -> list[PlannedService]:
        settings, addresses = self.settings, {}
        for index, name in enumerate(name for name in settings.services if role_of(name) == "gateway"):
            place = self._places.get(name)
            free = 0 if settings.port else free_port(settings.host if place is None else LOOPBACK.host)
            addresses[name] = (settings.host if place is None else place.host, free or settings.port + index)
        own = {name: server.url for name, server in self._servers.items()}
        return plan_services(
            settings,
            nats_url=own.get("nats") or self.nats_url,
            redis_url=own.get("redis") or self.redis_url,
            addresses=addresses,
            secrets=self._secrets,
        )

    def _add_service(self, planned: PlannedService) -> SupervisedProgram:
        env = self.settings.worker_env if role_of(planned.name) in _WORKERS else {}
        service = LocalService(
            planned.name,
            planned.arguments,
            log_path=self._log_dir / f"{planned.name}.log",
            ready_path=self.settings.data_dir / "run" / f"{planned.name}.ready",
            env={"OMP_NUM_THREADS": str(num_threads(self.settings)), **env},
            start_timeout_s=self.settings.start_timeout_s,
            place=self._places.get(planned.name, LOOPBACK),
        )
        if role_of(planned.name) == "gateway":
            self._gateways.append(service)
        return self._add(planned.name, service, planned.what)

    def _add(self, name: str, program: Program, what: str) -> SupervisedProgram:
        added = SupervisedProgram(
            name,
            program,
            what=what,
            restarts=self.settings.restarts,
            may_end=role_of(name) in _WORKERS,  # drained
            on_change=self._on_change,
        )
        self.processes[name] = added
        self._on_change(added)
        return added

    @property
    def _log_dir(self) -> Path:
        return self.settings.data_dir.absolute() / "logs"

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for program in self.processes.values():
                tasks.create_task(program.watch())
            for name in self._servers:
                tasks.create_task(self.processes[name].tend())

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})


@contextmanager
def _noted(path: Path, text: str) -> Iterator[None]:
    """Leave a note for commands while the context is open."""
    write_private(path, text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _set_aside(log_dir: Path) -> None:
    """Give each run logs of its own; those of the run before stay alongside them."""
    for log in log_dir.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
