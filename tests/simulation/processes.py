"""Simulated processes: who a callback belongs to, and what SIGKILL, SIGSTOP and SIGCONT do to that.

The process is a context variable: whatever a task starts inherits it. A killed process hears and says nothing any
more; its tasks are cancelled, only so that Python may clean up.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from tests.simulation.virtual_loop import VirtualLoop

PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class Process:
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.parked: list[Any] | None = None
        """Callbacks that wait for it to go on, while it is stopped."""
        self.on_death: list[Callable[[], None]] = []
        self.on_failure: Callable[[BaseException], None] | None = None
        """Is told what its tasks end with, unless it was killed."""
        self._loop = cast("VirtualLoop", asyncio.get_running_loop())
        self._context = contextvars.copy_context()
        self._context.run(PROCESS.set, self)
        self._tasks: list[asyncio.Task[Any]] = []

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something as this process."""
        task = self._loop.create_task(work, context=self._context)
        task.add_done_callback(self._note_end)
        self._tasks.append(task)
        return task

    def call_at(self, when: float, call: Callable[..., object], *args: object) -> None:
        """Have something happen to this process: when it is stopped then, when it goes on."""
        self._loop.call_at(when, call, *args, context=self._context)

    def stop(self) -> None:
        if self.parked is None:
            self.parked = []
            self._loop.num_stopped += 1

    def go_on(self) -> None:
        if self.parked is not None:
            parked, self.parked = self.parked, None
            self._loop.num_stopped -= 1
            self._loop.ready.extend(parked)

    def kill(self) -> None:
        self.is_dead = True
        self.go_on()
        for tell in self.on_death:
            tell()
        for task in self._tasks:
            task.cancel()

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.is_dead:
            _ = self.on_failure and self.on_failure(error)
