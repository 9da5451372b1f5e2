"""A whole pipeline on one machine: servers, gateway, conductor, vision workers and stages, each in its own process.

    settings = LocalSettings(model=artifact, stages=balanced_cut(artifact, 3), data_dir=directory)
    async with LocalCluster(settings) as cluster:
        ...  # cluster.gateway_url; cluster.processes["stage-1"].kill()

    start   nats, redis ──► gateway, conductor, vision-*, stage-* (together) ──► the gateway says that there is a route
    stop    gateway ──► conductor ──► vision-* ──► stage-* ──► redis ──► nats

NATS and Redis are embedded unless their URLs are given. What they hold stays in the data directory, so that a pipeline
started again there goes on with the jobs it had.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from broker_pipeline.errors import ServerStartError
from broker_pipeline.exit_codes import first_pipeline_error
from broker_pipeline.tools.local.directory_lock import DirectoryLock
from broker_pipeline.tools.local.plan import LocalSettings, PlannedService, num_threads, plan_services
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis, EmbeddedServer, free_port
from broker_pipeline.tools.local.service import LocalService
from broker_pipeline.tools.local.supervisor import Program, SupervisedProgram

_STOP_MARGIN_S = 5.0
_ROUTE_TIMEOUT_S = 60.0
_ROUTE_POLL_S = 0.1
_STOP_ORDER = ("gateway", "conductor", "vision", "stage", "redis", "nats")

ChangeListener = Callable[[SupervisedProgram], None]


class LocalCluster:
    """The running pipeline. Leaving the context stops everything, in order."""

    def __init__(self, settings: LocalSettings, *, on_change: ChangeListener = lambda _: None) -> None:
        """`on_change` is called with each program whose state changes."""
        self.settings = settings
        self.processes: dict[str, SupervisedProgram] = {}
        """By name: nats, redis (where embedded), gateway, conductor-0, vision-0 …, stage-0 …"""
        self._on_change = on_change
        self._lock = DirectoryLock(settings.data_dir)
        self._servers: dict[str, EmbeddedServer] = {}
        self._gateway: LocalService | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def nats_url(self) -> str:
        """Where NATS listens."""
        return self.settings.nats_url or self._servers["nats"].url

    @property
    def redis_url(self) -> str:
        """Where Redis listens."""
        return self.settings.redis_url or self._servers["redis"].url

    @property
    def gateway_url(self) -> str:
        """Where the gateway listens."""
        if self._gateway is None or "url" not in self._gateway.facts:
            raise RuntimeError("the gateway has not been started")
        return self._gateway.facts["url"]

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
        self._lock.acquire()
        _set_aside(self._log_dir)
        for name, server in self._embedded_servers():
            self._servers[name] = server
            self._add(name, server, "job queue and messages" if name == "nats" else "session state")
        await _start_together(self.processes.values())
        services = [self._add_service(planned) for planned in self._plan()]
        await _start_together(services)
        self._watching = asyncio.create_task(self._watch())
        await self._until_routed()

    async def wait_failed(self) -> None:
        """Wait until a program can never run again and raise its `ServerStartError`."""
        assert self._watching is not None, "not started"
        try:
            await asyncio.shield(self._watching)
        except BaseExceptionGroup as group:
            raise first_pipeline_error(group) or group from None

    async def stop(self) -> None:
        """Stop everything in order. When cancelled meanwhile, kill everything at once."""
        try:
            await self._stop_watching()
            for role in _STOP_ORDER:
                group = [program for name, program in self.processes.items() if name.partition("-")[0] == role]
                await asyncio.gather(*(program.stop(self.settings.drain_s + _STOP_MARGIN_S) for program in group))
        except asyncio.CancelledError:
            await self.destroy()
            raise
        self._lock.release()

    async def destroy(self) -> None:
        """Kill every process at once."""
        await self._stop_watching()
        await asyncio.gather(*(program.stop(0) for program in self.processes.values()))
        self._lock.release()

    def _embedded_servers(self) -> Iterable[tuple[str, EmbeddedServer]]:
        settings = self.settings
        if settings.nats_url is None:
            yield "nats", EmbeddedNats(settings.data_dir / "nats", log_path=self._log_dir / "nats.log")
        if settings.redis_url is None:
            yield "redis", EmbeddedRedis(settings.data_dir / "redis", log_path=self._log_dir / "redis.log")

    def _plan(self) -> list[PlannedService]:
        port = self.settings.port or free_port(self.settings.host)
        return plan_services(self.settings, nats_url=self.nats_url, redis_url=self.redis_url, port=port)

    def _add_service(self, planned: PlannedService) -> SupervisedProgram:
        service = LocalService(
            planned.name,
            planned.arguments,
            log_path=self._log_dir / f"{planned.name}.log",
            ready_path=self.settings.data_dir / "run" / f"{planned.name}.ready",
            env={"OMP_NUM_THREADS": str(num_threads(self.settings)), **self._env_of(planned)},
            start_timeout_s=self.settings.start_timeout_s,
        )
        if planned.name == "gateway":
            self._gateway = service
        return self._add(planned.name, service, planned.what)

    def _env_of(self, planned: PlannedService) -> Mapping[str, str]:
        return self.settings.worker_env if planned.arguments[0] in {"stage", "vision"} else {}

    def _add(self, name: str, program: Program, what: str) -> SupervisedProgram:
        added = SupervisedProgram(
            name,
            program,
            what=what,
            restarts=self.settings.restarts,
            may_end=name.startswith(("stage-", "vision-")),  # drained
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

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def _until_routed(self) -> None:
        """Wait until the gateway would take a job and the conductor would run it."""
        failed = asyncio.ensure_future(self.wait_failed())
        routed = asyncio.ensure_future(_poll_readiness(self.gateway_url))
        try:
            await asyncio.wait({failed, routed}, return_when=asyncio.FIRST_COMPLETED)
            await (failed if failed.done() else routed)
        finally:
            for task in (failed, routed):
                task.cancel()
            await asyncio.wait({failed, routed})


async def _start_together(programs: Iterable[SupervisedProgram]) -> None:
    """Start all at once; raises the first `ServerStartError` and gives the other starts up."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for program in programs:
                tasks.create_task(program.start())
    except BaseExceptionGroup as group:
        raise first_pipeline_error(group) or group from None


async def _poll_readiness(gateway_url: str) -> None:
    deadline = time.monotonic() + _ROUTE_TIMEOUT_S
    reason = "it did not answer"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
        while time.monotonic() < deadline:
            try:
                async with http.get(f"{gateway_url}/readyz") as answer:
                    if answer.status == 200:
                        return
                    reason = await answer.text()
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            await asyncio.sleep(_ROUTE_POLL_S)
    raise ServerStartError(
        f"everything runs, but {gateway_url}/readyz still says after {_ROUTE_TIMEOUT_S:g} s: {reason}"
    )


def _set_aside(log_dir: Path) -> None:
    """Give each run logs of its own; those of the run before stay alongside them."""
    for log in log_dir.glob("*.log"):
        log.replace(log.with_suffix(".log.1"))
