"""Tells long polls that their job has ended: one subscription of the process for all of them.

A subscription of its own, made and ended with each poll, cost as much as all that a submission stores. Every process
hears of every end, which is a few dozen bytes; tokens it hears of only where it streams them (see `watch`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from broker_pipeline import subjects
from broker_pipeline.errors import SlowConsumerError
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.wire.transport import Subscription, Transport


class JobEnds:
    """Who waits for which job."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @classmethod
    @asynccontextmanager
    async def open(cls, transport: Transport, namespace: str, stopping: asyncio.Event) -> AsyncIterator[JobEnds]:
        """Listen while the context is open; `stopping` wakes all who wait. Raises `TransportError`."""
        ends = cls()
        subject = subjects.job_events(namespace, "*", "finished")
        async with transport.subscribe(subject, JobEvent, on_dropped=_is_found_by_a_look) as messages:
            tasks = (asyncio.create_task(ends._read(messages)), asyncio.create_task(ends._wake_at(stopping)))
            try:
                yield ends
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    @contextmanager
    def expecting(self, job_id: str) -> Iterator[asyncio.Event]:
        """Have the event set when the job's end is told of; what is lost, the caller finds in Redis now and then."""
        ended = asyncio.Event()
        self._waiting[job_id].add(ended)
        try:
            yield ended
        finally:
            self._waiting[job_id].discard(ended)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _read(self, messages: Subscription[JobEvent]) -> None:
        async for received in messages:
            for ended in self._waiting.get(received.body.job_id, ()):
                ended.set()

    async def _wake_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        for waiting in self._waiting.values():
            for ended in waiting:
                ended.set()


def _is_found_by_a_look(_error: SlowConsumerError, _event: JobEvent | None) -> None:
    """Leave an end for which there was no room to who waits for it."""
