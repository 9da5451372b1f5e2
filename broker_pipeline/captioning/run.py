"""Captions a data set: one pass over its source in order, a bounded number of items in flight, sinks fed in order.

    source ──► thread ──► items ──► window ──► a task an item: read, ask, log ──► in order ──► thread ──► sinks
                                      ▲                                              │
                                      └────────────── one place is free ◄────────────┘

The log has every answer as soon as it is known; sinks are given every item of the source in every run. So a run that
was killed is begun again and asks for nothing twice: what it had submitted is found under the same key at the gateway.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from broker_pipeline.captioning.item_run import Ended, ItemRun
from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.sinks.row import Row, Sink
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.captioning.summary import Summary
from broker_pipeline.errors import NoPlaceError
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.process.daemon_thread import in_daemon_thread

T = TypeVar("T")

_WINDOW = 8
"""Items that may wait for the one in front of them, for each in flight: sinks take them in order."""


class Progress(Protocol):
    """Is told what happens, to show it."""

    def skipped(self) -> None:
        """Take note of an item that had its captions already, or was passed over."""

    def finished(self, lines: Sequence[CaptionLine]) -> None:
        """Take note of an item that was captioned, dropped, or failed."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a run goes."""

    num_in_flight: int = 64
    fail_fast: bool = False
    num_read_ahead: int = 64
    """Items that a thread takes from the source at a time; 1 where each has to be taken as it comes."""


class CaptionRun:
    """One run over a source. `summary` says how far it came, also when it was cancelled."""

    def __init__(
        self, items: ItemRun, sinks: Sequence[Sink], progress: Progress, summary: Summary, settings: RunSettings
    ) -> None:
        self._items = items
        self._sinks = sinks
        self._progress = progress
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.num_in_flight)
        self._sink_lock = threading.Lock()
        """A row that is being written when a run is cancelled is written before the sinks are closed."""
        self._is_ending = False
        self.summary = summary

    async def run(self, source: Iterable[Item]) -> Summary:
        """Caption all items and return what came of it.

        Raises `GatewayUnreachableError` when the gateway has been silent for the client's patience, `OutputError` when
        a line or a sink cannot be written, and what the source raises.
        """
        is_whole = False
        try:
            with raising_first_error():
                async with asyncio.TaskGroup() as group:
                    ordered: asyncio.Queue[asyncio.Task[Ended] | None] = asyncio.Queue(
                        _WINDOW * self._settings.num_in_flight
                    )
                    group.create_task(self._write(ordered))
                    await self._start_all(source, group, ordered)
            is_whole = not self._is_ending
        finally:
            self.summary.num_left_running = self._items.num_left_running
            await in_daemon_thread(self._close, is_whole=is_whole)
        return self.summary

    async def _start_all(
        self, source: Iterable[Item], group: asyncio.TaskGroup, ordered: asyncio.Queue[asyncio.Task[Ended] | None]
    ) -> None:
        async for item in in_thread(iter(source), self._settings.num_read_ahead):
            await self._slots.acquire()
            if self._is_ending:
                break
            await ordered.put(group.create_task(self._end(item)))
        await ordered.put(None)

    async def _end(self, item: Item) -> Ended:
        try:
            ended = await self._items.run(item)
        finally:
            self._slots.release()
        self._count(ended)
        return ended

    def _count(self, ended: Ended) -> None:
        lines = list(ended.row.lines.values())
        if ended.is_known or ended.is_passed_over:
            self.summary.num_skipped += ended.is_known
            self.summary.num_passed_over += ended.is_passed_over
            self._progress.skipped()
            return
        self.summary.count(lines)
        self._is_ending = self._is_ending or (self._settings.fail_fast and not all(line.is_final for line in lines))
        self._progress.finished(lines)

    async def _write(self, ordered: asyncio.Queue[asyncio.Task[Ended] | None]) -> None:
        while (task := await ordered.get()) is not None:
            ended = await task
            if self._sinks and not ended.is_passed_over:
                await in_daemon_thread(self._add, ended.row)

    def _add(self, row: Row) -> None:
        with self._sink_lock:
            for sink in self._sinks:
                try:
                    sink.add(row)
                except NoPlaceError as error:
                    self.summary.count_left_out(error.message)

    def _close(self, *, is_whole: bool) -> None:
        with self._sink_lock, ExitStack() as closing:  # all of them, also where one fails
            for sink in reversed(self._sinks):
                closing.callback(sink.close, is_whole=is_whole)


async def in_thread(items: Iterator[T], most: int = 64) -> AsyncIterator[T]:
    """Yield what an iterator that blocks has: one at first, so that a source that is slow shows what it has."""
    size = 1
    while chunk := await in_daemon_thread(_take, items, size):
        for item in chunk:
            yield item
        size = min(2 * size, most)


def _take(items: Iterator[T], num: int) -> list[T]:
    return list(islice(items, num))
