"""Keeps cancellations that a library swallows.

Reproduced on Python 3.11 with redis-py 8.1 (its check of an idle connection, in about nine of ten cases) and nats-py
2.16 (a request whose answer comes in the same turn of the loop: `asyncio.wait_for` returns it and forgets the
cancellation). A task that loops over such calls then never ends, and with it a service that wants to stop.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class cancellation_kept:  # noqa: N801 - reads as what it does
    """Raises `CancelledError` at the end if the task was cancelled meanwhile, whatever the calls inside made of it.

    Cancellations from before do not count, so that clean-up code can make such calls too; nor do those of an
    `asyncio.timeout` inside, which takes its own back. No generator, since nearly every call of a server is in one.
    """

    __slots__ = ("_num_before", "_task")

    def __enter__(self) -> None:
        try:
            self._task = asyncio.current_task()
        except RuntimeError:  # no loop runs
            self._task = None
        self._num_before = self._task.cancelling() if self._task else 0

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        may_hide_one = error is None or isinstance(error, Exception)
        if may_hide_one and self._task and self._task.cancelling() > self._num_before:
            raise asyncio.CancelledError from error
