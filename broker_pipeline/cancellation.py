"""Keeps cancellations that a library swallows.

Reproduced on Python 3.11 with redis-py 8.1 (its check of an idle connection, in about nine of ten cases) and nats-py
2.16 (a request whose answer comes in the same turn of the loop: `asyncio.wait_for` returns it and forgets the
cancellation). A task that loops over such calls then never ends, and with it a service that wants to stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """Raise `CancelledError` at the end if the task was cancelled meanwhile, whatever the calls inside made of it.

    Cancellations from before do not count, so that clean-up code can make such calls too; nor do those of an
    `asyncio.timeout` inside, which takes its own back.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs
        task = None
    if task is None:
        yield
        return
    num_before = task.cancelling()
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if task.cancelling() > num_before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > num_before:
        raise asyncio.CancelledError
