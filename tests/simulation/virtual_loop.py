"""An event loop whose time passes only when nothing else is left to do, and then jumps to the next timer.

ready ── run, first in, first out ──► ready empty? ── time = that of the next timer ──► due timers are ready

Nothing in it waits, and nothing in it comes from outside, so that one seed gives one history. Callbacks belong to a
simulated process (`processes.PROCESS`); those of a stopped one are kept until it goes on. It is lean, since nearly all
that a schedule costs is callbacks: no handles of asyncio's own, and timers that compare as tuples.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.processes import PROCESS

_MAX_STEPS_AT_ONCE = 20_000


class StandstillError(Exception):
    """Everybody waits for something that nobody will do, or somebody never lets time pass."""


class _Call:
    """What asyncio and we use of a `TimerHandle`."""

    __slots__ = ("args", "call", "context", "is_cancelled", "when_s")

    def __init__(
        self, when_s: float, call: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> None:
        self.when_s, self.call, self.args, self.is_cancelled = when_s, call, args, False
        self.context = contextvars.copy_context() if context is None else context

    def cancel(self) -> None:
        self.is_cancelled = True
        self.args = ()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.num_callbacks = 0
        self.num_callbacks_before = 0
        self.ready: deque[_Call] = deque()
        self._timers: list[tuple[float, int, _Call]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        call = _Call(self.now, callback, args, context)
        self.ready.append(call)
        return call

    def call_at(self, when, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        call = _Call(when, callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), call))
        return call

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[no-untyped-def,override]
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        ready = self.ready
        while not self._stopping:  # type: ignore[attr-defined]
            if not ready:
                self._pass_time()
            if self.num_callbacks - self.num_callbacks_before > _MAX_STEPS_AT_ONCE:
                raise StandstillError(f"time stands still at {self.now:.3f} s")
            call = ready.popleft()
            if call.is_cancelled:
                continue
            process = call.context.get(PROCESS)
            if process is not None and process.parked is not None:
                process.parked.append(call)
                continue
            self.num_callbacks += 1
            call.context.run(call.call, *call.args)

    def _pass_time(self) -> None:
        timers = self._timers
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        if not timers:
            raise StandstillError(f"nothing is left to happen at {self.now:.3f} s")
        if timers[0][0] > self.now:
            self.now = timers[0][0]
            self.num_callbacks_before = self.num_callbacks
        while timers and timers[0][0] <= self.now:
            self.ready.append(heapq.heappop(timers)[2])

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...
