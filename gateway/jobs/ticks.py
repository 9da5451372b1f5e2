"""Reads a stream of messages without waiting for ever: when nothing comes for a while, or somebody asks for an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from broker_pipeline.process.broadcast_event import BroadcastEvent

T = TypeVar("T")


async def with_ticks(
    source: AsyncIterator[T], tick_s: float, stopping: asyncio.Event, sooner: BroadcastEvent
) -> AsyncGenerator[T | None, None]:
    """Yield the items of `source`, and None whenever `tick_s` seconds pass without one; end when `stopping` is set.

    `sooner` has a None come at once.

    Close the generator (`contextlib.aclosing`) when leaving it early.
    """
    stop = asyncio.ensure_future(stopping.wait())
    item = asyncio.ensure_future(anext(source))
    tick = asyncio.ensure_future(sooner.wait())
    try:
        while not stopping.is_set():
            await asyncio.wait({item, stop, tick}, timeout=tick_s, return_when=asyncio.FIRST_COMPLETED)
            if item.done():
                try:
                    value = item.result()
                except StopAsyncIteration:
                    return
                item = asyncio.ensure_future(anext(source))
                yield value
            elif not stop.done():
                if tick.done():
                    tick = asyncio.ensure_future(sooner.wait())
                yield None
    finally:
        for task in (stop, item, tick):
            task.cancel()
        await asyncio.gather(stop, item, tick, return_exceptions=True)
