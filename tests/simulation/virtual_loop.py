"""An event loop whose time passes only when nothing else is left to do, and then jumps to the next timer.

ready ── run, first in, first out ──► ready empty? ── time = that of the next timer ──► due timers are ready

Nothing in it waits, and nothing in it comes from outside, so that one seed gives one history. Callbacks belong to a
simulated process (`processes.PROCESS`); those of a stopped one are kept until it goes on.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import Any

from tests.simulation.processes import PROCESS

_MAX_STEPS_AT_ONCE = 20_000


class StandstillError(Exception):
    """Everybody waits for something that nobody will do, or somebody never lets time pass."""


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.num_callbacks = 0
        self.num_callbacks_before = 0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready:
            self._pass_time()
        if self.num_callbacks - self.num_callbacks_before > _MAX_STEPS_AT_ONCE:
            raise StandstillError(f"time stands still at {self.now:.3f} s")
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and process.parked is not None:
                process.parked.append(handle)
                continue
            self.num_callbacks += 1
            handle._run()

    def _pass_time(self) -> None:
        timers = self._scheduled
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not timers:
            raise StandstillError(f"nothing is left to happen at {self.now:.3f} s")
        if timers[0]._when > self.now:
            self.now = timers[0]._when
            self.num_callbacks_before = self.num_callbacks
        while timers and timers[0]._when <= self.now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            self._ready.append(timer)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it in the heap: it is skipped when its time comes."""

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...
