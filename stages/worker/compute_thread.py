"""The one thread on which a worker's model runs.

The event loop only shuffles messages; everything that touches weights, KV or a GPU context happens here, in the order
of submission, so that compute code needs no locks. The thread is a daemon: a computation that hangs cannot keep the
process from ending (threads of `concurrent.futures` are joined at exit and would).
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class ComputeThread:
    """Runs functions one after the other, without autograd.

    The caller bounds what it submits; the queue here does not.
    """

    def __init__(self, name: str = "compute") -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Queue a call and return a future of the running loop; cancelling it drops the call if it has not begun."""
        future: Future[T] = Future()
        context = contextvars.copy_context()  # so that log lines of the call carry what those of the caller do

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                outcome = context.run(function, *args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is raised again where the future is awaited
                future.set_exception(error)
            else:
                future.set_result(outcome)

        self._tasks.put(task)
        return asyncio.wrap_future(future)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Queue a call and wait for its result."""
        return await self.submit(function, *args, **kwargs)

    @property
    def running_for_s(self) -> float:
        """Seconds since the call that is running began; 0 when idle."""
        since = self._running_since
        return time.monotonic() - since if since is not None else 0.0

    def close(self, timeout_s: float = 1.0) -> bool:
        """End the thread after what is queued; False if it is still computing after `timeout_s`."""
        self._tasks.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        with torch.inference_mode():
            while (task := self._tasks.get()) is not None:
                self._running_since = time.monotonic()
                task()
                self._running_since = task = None  # what it had may be memory that somebody waits for
