"""Tells long polls that their job has ended: one subscription of the process for all of them.

A subscription of its own, made and ended with each poll, cost as much as all that a submission stores. Every process
hears of every end, which is a few dozen bytes; tokens it hears of only where it streams them (see `watch`).

An end that NATS lost is found in Redis: a look now and then, and after each reconnect, for all polls in one round trip.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import structlog

from broker_pipeline import subjects
from broker_pipeline.errors import SlowConsumerError, StateError
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.wire.transport import Subscription, Transport

log = structlog.get_logger()

_LOOK_S = 2.0
_JOBS_PER_LOOK = 512


class EndWatch:
    """Who waits for which job."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._reconnected = asyncio.Event()
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, transport: Transport, store: JobStore, namespace: str, stopping: asyncio.Event
    ) -> AsyncIterator[EndWatch]:
        """Listen while the context is open; `stopping` wakes all who wait. Raises `TransportError`."""
        ends = cls(store)
        transport.add_reconnect_listener(ends._reconnected.set)
        subject = subjects.job_events(namespace, "*", "finished")
        async with (
            transport.subscribe(subject, JobEvent, on_dropped=_is_found_by_a_look) as messages,
            asyncio.TaskGroup() as group,
        ):
            tasks = [group.create_task(each) for each in (ends._read(messages), ends._look(), ends._wake_at(stopping))]
            try:
                yield ends
            finally:
                for task in tasks:
                    task.cancel()

    @contextmanager
    def expecting(self, *job_ids: str) -> Iterator[asyncio.Event]:
        """Have the event set when one of the jobs has ended, or Redis cannot be asked."""
        ended = asyncio.Event()
        for job_id in job_ids:
            self._waiting[job_id].add(ended)
        try:
            yield ended
        finally:
            for job_id in set(job_ids):
                self._waiting[job_id].discard(ended)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    async def _read(self, messages: Subscription[JobEvent]) -> None:
        async for received in messages:
            self._wake([received.body.job_id])

    async def _look(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._reconnected.wait()
            self._reconnected.clear()
            waiting = list(self._waiting)
            for start in range(0, len(waiting), _JOBS_PER_LOOK):
                job_ids = waiting[start : start + _JOBS_PER_LOOK]
                try:
                    self._wake(await self._store.ended(job_ids))
                except StateError as error:
                    log.info("ends_not_looked_for", num_jobs=len(job_ids), reason=error.message)
                    self._wake(job_ids)  # each asks for itself, and answers with the error if it lasts

    async def _wake_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._wake(list(self._waiting))

    def _wake(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            for ended in self._waiting.get(job_id, ()):
                ended.set()


def _is_found_by_a_look(_error: SlowConsumerError, _event: JobEvent | None) -> None:
    """Leave an end for which there was no room to who waits for it."""
