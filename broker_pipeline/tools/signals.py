"""What SIGINT, SIGTERM and SIGHUP do to a command: they end its work, which then cleans up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from broker_pipeline.process.end_signals import end_signals

T = TypeVar("T")


@contextmanager
def handling_signals(on_signal: Callable[[], object]) -> Iterator[None]:
    """Call `on_signal` for each signal while the context is open."""
    loop = asyncio.get_running_loop()
    numbers = end_signals()
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def until_interrupted(work: Coroutine[Any, Any, T]) -> T | None:
    """Run `work` to its end and return its result, or cancel it at a signal and return None.

    Work that is cancelled by anything else raises `CancelledError`: it would end without a word.
    """
    task = asyncio.ensure_future(work)
    signals: list[bool] = []
    with handling_signals(lambda: signals.append(task.cancel())):
        await asyncio.wait({task})
    return None if signals and task.cancelled() else task.result()
