"""An event loop whose time passes only when nothing else is left to do, and then jumps to the next timer.

ready ── run, first in, first out ──► ready empty? ── time = that of the next timer ──► due timers are ready

Nothing in it waits, and nothing in it comes from outside, so that one seed gives one history. Callbacks belong to a
simulated process (`processes.PROCESS`); those of a stopped one are kept until it goes on. It is lean, since nearly all
that a schedule costs is callbacks: a handle is a list, made and compared without running Python.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from contextvars import copy_context
from heapq import heappop, heappush
from typing import Any

from tests.simulation.processes import PROCESS

_MOST_AT_ONCE = 20_000
"""Callbacks."""


class StandstillError(Exception):
    """Everybody waits for something that nobody will do, or somebody never lets time pass."""


class _Call(list[Any]):
    """What asyncio and we use of a `TimerHandle`: when, its number, what to call, arguments, context.

    No two have the same number, so that comparison ends there.
    """

    __slots__ = ()

    def cancel(self) -> None:
        self[2:4] = None, ()

    def cancelled(self) -> bool:
        return self[2] is None

    def when(self) -> float:
        return self[0]  # type: ignore[no-any-return]


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.num_callbacks = 0
        self._most_callbacks = _MOST_AT_ONCE
        self.num_stopped = 0
        """Processes whose callbacks are kept."""
        self.tasks: list[asyncio.Task[Any]] = []
        """All that there ever were: asyncio's own list is of all loops, also those that are no more."""
        self.ready: deque[_Call] = deque()
        self._timers: list[_Call] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def create_task(self, coro, **options):  # type: ignore[no-untyped-def,override]
        task = asyncio.Task(coro, loop=self, **options)
        self.tasks.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        call = _Call((0.0, 0, callback, args, copy_context() if context is None else context))
        self.ready.append(call)
        return call

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        call = _Call((when, next(self._numbers), callback, args, copy_context() if context is None else context))
        heappush(self._timers, call)
        return call

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        when = self.now + delay
        call = _Call((when, next(self._numbers), callback, args, copy_context() if context is None else context))
        heappush(self._timers, call)
        return call

    def _run_once(self) -> None:
        ready = self.ready
        while not self._stopping:  # type: ignore[attr-defined]
            if not ready:
                self._pass_time()
            if self.num_callbacks > self._most_callbacks:
                raise StandstillError(f"time stands still at {self.now:.3f} s")
            call = ready.popleft()
            _, _, callback, args, context = call
            if callback is None or (self.num_stopped and _is_parked(call)):
                continue
            self.num_callbacks += 1
            context.run(callback, *args)

    def grant(self) -> None:
        """Let as many callbacks run from now on, before time has to pass."""
        self._most_callbacks = self.num_callbacks + _MOST_AT_ONCE

    def _pass_time(self) -> None:
        timers, ready = self._timers, self.ready
        while timers and timers[0][2] is None:
            heappop(timers)
        if not timers:
            raise StandstillError(f"nothing is left to happen at {self.now:.3f} s")
        if timers[0][0] > self.now:
            self.now = timers[0][0]
            self.grant()
        now = self.now
        while timers and timers[0][0] <= now:
            ready.append(heappop(timers))

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...


def _is_parked(call: _Call) -> bool:
    """Whether it belongs to a process that is stopped, and is kept there."""
    process = call[4].get(PROCESS)
    if process is None or process.parked is None:
        return False
    process.parked.append(call)
    return True
