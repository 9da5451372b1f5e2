"""Does the faults of a plan to a running cluster, and undoes those that do not end by themselves.

kill        SIGKILL; the supervisor starts it again
restart     SIGTERM, and started again when it has ended
stop        SIGSTOP … SIGCONT           the process hangs and later goes on as if nothing had been
partition   veth down … veth up         the process lives, and nobody hears it
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.supervisor import SupervisedProgram
from trials.soak.faults.network import Network
from trials.soak.faults.plan import Fault

_READY_TIMEOUT_S = 90.0


@dataclass(slots=True)
class InjectedFault:
    """A fault that was done at the time `at` (monotonic clock); `back_s` is when its target was ready again."""

    fault: Fault
    at: float
    pid: int | None
    back_s: float | None = None
    problem: str | None = None


class FaultInjector:
    """Goes through a plan, one fault after the other; faults on different targets may overlap."""

    def __init__(
        self,
        cluster: LocalCluster,
        network: Network | None,
        *,
        on_change: Callable[[InjectedFault], None] = lambda _: None,
    ) -> None:
        """Disturb `cluster`; `on_change` is called when a fault has been done, and when its target is back."""
        self.injected: list[InjectedFault] = []
        self._cluster = cluster
        self._network = network
        self._on_change = on_change

    async def run(self, faults: Iterator[Fault], is_enough: Callable[[], bool]) -> None:
        """Inject until `is_enough`, then wait until every target is back. Cancelled, it undoes what is left."""
        async with asyncio.TaskGroup() as ends:
            for fault in faults:
                await self._pause(fault.pause_s, is_enough)
                if is_enough():
                    return
                if (done := await self._begin(fault)) is not None:
                    ends.create_task(self._end(done))

    async def _pause(self, pause_s: float, is_enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + pause_s
        while not is_enough() and (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110 - may come any time
            await asyncio.sleep(min(left, 0.25))

    async def _begin(self, fault: Fault) -> InjectedFault | None:
        """Do the fault, once its target has come back from an earlier one; None when it does not come back."""
        program = self._cluster.processes[fault.target]
        try:
            await self._until_undisturbed(fault.target)
        except ServerStartError as error:
            self._note(InjectedFault(fault, time.monotonic(), None, problem=f"could not be hit: {error.message}"))
            return None
        done = InjectedFault(fault, time.monotonic(), program.process.pid)
        match fault.kind:
            case "kill":
                program.kill()
            case "stop":
                program.kill(signal.SIGSTOP)
            case "partition":
                await self._net.cut(fault.target)
            case "restart":
                pass  # lasts: see `_end`
        self._note(done)
        return done

    def _note(self, done: InjectedFault) -> None:
        self.injected.append(done)
        self._on_change(done)

    async def _until_undisturbed(self, target: str) -> None:
        program = self._cluster.processes[target]
        while any(  # noqa: ASYNC110 - told by another task
            done.fault.target == target and done.back_s is None and done.problem is None for done in self.injected
        ):
            await asyncio.sleep(0.1)
        await program.wait_ready(_READY_TIMEOUT_S)

    async def _end(self, done: InjectedFault) -> None:
        program = self._cluster.processes[done.fault.target]
        try:
            await self._undo(done, program)
            await program.wait_ready(_READY_TIMEOUT_S)
        except ServerStartError as error:
            done.problem = error.message
        else:
            done.back_s = time.monotonic() - done.at
        self._on_change(done)

    async def _undo(self, done: InjectedFault, program: SupervisedProgram) -> None:
        fault = done.fault
        if fault.kind == "restart":
            await program.restart()
        elif fault.kind == "kill":
            await _until_gone(program, done.pid)
        elif fault.kind == "stop":
            try:
                await asyncio.sleep(fault.away_s)
            finally:
                program.kill(signal.SIGCONT)
        else:
            try:
                await asyncio.sleep(fault.away_s)
            finally:
                await asyncio.shield(self._net.mend(fault.target))

    @property
    def _net(self) -> Network:
        assert self._network is not None, "partition faults need a network"
        return self._network


async def _until_gone(program: SupervisedProgram, pid: int | None) -> None:
    """Wait until the supervisor has seen the death: `wait_ready` would be satisfied before."""
    while program.process.pid == pid and program.state == "ready":  # noqa: ASYNC110 - seen by another task
        await asyncio.sleep(0.02)
