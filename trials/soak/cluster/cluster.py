"""The running pipeline of a soak. Everything is supervised: what dies comes back, as under systemd or Kubernetes.

start   nats, redis ──► all services together ──► a gateway says that there is a route and a vision worker
stop    gateways ──► conductors ──► vision ──► stages ──► redis ──► nats
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

import aiohttp

from broker_pipeline.errors import ServerStartError
from broker_pipeline.exit_codes import first_pipeline_error
from broker_pipeline.tools.local.servers import free_port
from broker_pipeline.tools.local.supervisor import Program, SupervisedProgram
from trials.soak.cluster.fault_plan import role_of
from trials.soak.cluster.netns import Network
from trials.soak.cluster.placed import Place, PlacedNats, PlacedRedis, PlacedService
from trials.soak.cluster.plan import SERVERS, SoakPlan

_STOP_ORDER = ("gateway", "conductor", "vision", "stage", "redis", "nats")
_STOP_MARGIN_S = 5.0
_READY_TIMEOUT_S = 90.0
_POLL_S = 0.2


class SoakCluster:
    """All programs of a plan. Leaving the context stops them in order, or kills them when it is cancelled."""

    def __init__(
        self,
        plan: SoakPlan,
        network: Network | None = None,
        *,
        on_change: Callable[[SupervisedProgram], None] = lambda _: None,
    ) -> None:
        """With a network every program runs in its own namespace, else all on the loopback interface."""
        self.plan = plan
        self.programs: dict[str, SupervisedProgram] = {}
        self._network = network
        self._on_change = on_change
        self._ports = {
            name: free_port() for name in (*SERVERS, *plan.services) if role_of(name) in {*SERVERS, "gateway"}
        }
        self._watching: asyncio.Task[None] | None = None

    @property
    def nats_url(self) -> str:
        """Where NATS listens."""
        return f"nats://{self._place('nats').address}:{self._ports['nats']}"

    @property
    def redis_url(self) -> str:
        """Where Redis listens."""
        return f"redis://{self._place('redis').address}:{self._ports['redis']}"

    @property
    def gateway_urls(self) -> tuple[str, ...]:
        """Where the gateways listen."""
        names = [name for name in self.plan.services if role_of(name) == "gateway"]
        return tuple(f"http://{self._place(name).address}:{self._ports[name]}" for name in names)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._destroy()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.stop()
        else:
            await self._destroy()

    async def stop(self) -> None:
        """Stop everything in order; kill it when cancelled meanwhile."""
        await self._stop_watching()
        try:
            for role in _STOP_ORDER:
                group = [program for name, program in self.programs.items() if role_of(name) == role]
                await asyncio.gather(*(program.stop(self.plan.drain_s + _STOP_MARGIN_S) for program in group))
        except asyncio.CancelledError:
            await self._destroy()
            raise

    async def wait_failed(self) -> None:
        """Wait until a program can never run again and raise its `ServerStartError`."""
        assert self._watching is not None, "not started"
        try:
            await asyncio.shield(self._watching)
        except BaseExceptionGroup as group:
            raise first_pipeline_error(group) or group from None

    async def until_ready(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait until every program is ready, and every gateway would take a job and have it run.

        Raises `ServerStartError` naming what is not.
        """
        deadline = time.monotonic() + timeout_s
        while (missing := await self._not_ready()) is not None:
            if time.monotonic() > deadline:
                raise ServerStartError(f"not ready after {timeout_s:g} s: {missing}")
            await asyncio.sleep(_POLL_S)

    async def _not_ready(self) -> str | None:
        for name, program in self.programs.items():
            if program.state != "ready":
                return f"{name} is {program.state} {program.detail}".rstrip()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            for url in self.gateway_urls:
                try:
                    async with http.get(f"{url}/readyz") as answer:
                        if answer.status != 200:
                            return f"{url}/readyz says {await answer.text()}"
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    return f"{url}: {error or type(error).__name__}"
        return None

    async def _start(self) -> None:
        await _start_together([self._add(name, self._server(name)) for name in SERVERS])
        await _start_together([self._add(name, self._service(name)) for name in self.plan.services])
        self._watching = asyncio.create_task(self._watch())
        await self.until_ready()

    def _add(self, name: str, program: Program) -> SupervisedProgram:
        self.programs[name] = SupervisedProgram(name, program, on_change=self._on_change)
        return self.programs[name]

    def _server(self, name: str) -> Program:
        kind = PlacedNats if name == "nats" else PlacedRedis
        directory = self.plan.directory
        log_path = directory / "logs" / f"{name}.log"
        return kind(directory / name, self._place(name), port=self._ports[name], log_path=log_path)

    def _service(self, name: str) -> Program:
        place = self._place(name)
        port = self._ports.get(name, 0)
        arguments = self.plan.arguments(
            name, address=place.address, port=port, nats_url=self.nats_url, redis_url=self.redis_url
        )
        env = {"OMP_NUM_THREADS": "1"}
        return PlacedService(name, place, arguments, directory=self.plan.directory.absolute(), env=env)

    def _place(self, name: str) -> Place:
        if self._network is None:
            return Place()
        return Place(self._network.address(name), self._network.within(name))

    async def _watch(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for program in self.programs.values():
                tasks.create_task(program.watch())

    async def _stop_watching(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def _destroy(self) -> None:
        await self._stop_watching()
        await asyncio.gather(*(program.stop(0) for program in self.programs.values()))


async def _start_together(programs: Iterable[SupervisedProgram]) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for program in programs:
                tasks.create_task(program.start())
    except BaseExceptionGroup as group:
        raise first_pipeline_error(group) or group from None
