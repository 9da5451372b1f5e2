"""Does the faults of a plan to a running cluster, and undoes those that do not end by themselves.

planned ──► its target is well, and nobody who stands in for it is sick ──► done ── away ──► undone ──► ready again
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from broker_pipeline.errors import PipelineError, ServerStartError
from trials.soak.faults.deeds import DEEDS
from trials.soak.faults.plan import Fault
from trials.soak.faults.scene import Scene

_READY_TIMEOUT_S = 90.0
_SETTLED_S = 5.0


@dataclass(slots=True)
class InjectedFault:
    """A fault that was done at the time `at` (monotonic clock); `back_s` is when its target was ready again."""

    fault: Fault
    at: float
    pid: int | None
    back_s: float | None = None
    problem: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether its target is back, or will never be."""
        return self.back_s is not None or self.problem is not None

    def is_settled(self, now: float) -> bool:
        """Whether its target has been back for as long as conductors may take to use it; by the monotonic clock."""
        return self.is_over and (self.back_s is None or now > self.at + self.back_s + _SETTLED_S)


class FaultInjector:
    """Goes through a plan, one fault after the other; faults on different targets may overlap."""

    def __init__(self, scene: Scene, *, on_change: Callable[[InjectedFault], None] = lambda _: None) -> None:
        """Disturb what is in `scene`; `on_change` is called when a fault has been done, and when its target is back."""
        self.injected: list[InjectedFault] = []
        self._scene = scene
        self._on_change = on_change

    async def run(self, faults: Iterator[Fault], is_enough: Callable[[], bool]) -> None:
        """Inject until `is_enough`, then wait until every target is back. Cancelled, it undoes what is left."""
        async with asyncio.TaskGroup() as ends:
            for fault in faults:
                await self._pause(fault.pause_s, is_enough)
                if is_enough():
                    return
                await self._inject(fault, ends)

    async def _pause(self, pause_s: float, is_enough: Callable[[], bool]) -> None:
        deadline = time.monotonic() + pause_s
        while not is_enough() and (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110 - may come any time
            await asyncio.sleep(min(left, 0.25))

    async def _inject(self, fault: Fault, ends: asyncio.TaskGroup) -> None:
        """Do the fault, once its target has come back from an earlier one, and have it undone later."""
        program = self._scene.cluster.processes[fault.target]
        doing = AsyncExitStack()
        try:
            while any(self._forbids(done, fault) for done in self.injected):  # noqa: ASYNC110 - told by another task
                await asyncio.sleep(0.1)
            await program.wait_ready(_READY_TIMEOUT_S)
            done = InjectedFault(fault, time.monotonic(), program.process.pid)
            await doing.enter_async_context(DEEDS[fault.kind](self._scene, fault))
        except PipelineError as error:
            problem = f"could not be hit: {error.message}"
            self._note(InjectedFault(fault, time.monotonic(), None, problem=problem))
            return
        self._note(done)
        ends.create_task(self._end(done, doing))

    def _forbids(self, done: InjectedFault, fault: Fault) -> bool:
        """Whether a fault has to be over before another begins: on the same target, or one of those able is sick.

        Who stands in for a sick one has to be back for a while: the conductors have to have taken it in.
        """
        others = self._scene.others(fault.target)
        if done.is_over:
            return fault.kind == "sick" and done.fault.target in others and not done.is_settled(time.monotonic())
        is_one_sick = "sick" in (done.fault.kind, fault.kind)
        return done.fault.target == fault.target or (is_one_sick and done.fault.target in others)

    def _note(self, done: InjectedFault) -> None:
        self.injected.append(done)
        self._on_change(done)

    async def _end(self, done: InjectedFault, doing: AsyncExitStack) -> None:
        program = self._scene.cluster.processes[done.fault.target]
        try:
            async with doing:
                await asyncio.sleep(done.fault.away_s)
            await program.wait_ready(_READY_TIMEOUT_S)
        except ServerStartError as error:
            done.problem = error.message
        else:
            done.back_s = time.monotonic() - done.at
        self._on_change(done)
