"""Follows jobs as they run: all events for a stream, or just the end for a long poll.

Each watch subscribes first and reads Redis second, so that nothing falls between the two. Messages that NATS lost,
and a subscription that was too slow, cost a look into Redis and nothing else.

Conductors publish the tokens only of jobs that somebody watches: this says which, again and again.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress

import structlog
from prometheus_client import Histogram

from broker_pipeline import subjects
from broker_pipeline.errors import QueueFullError, SlowConsumerError, TransportError
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobEvent, JobRecord
from broker_pipeline.process.broadcast_event import BroadcastEvent
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Received, Subscription, Transport
from gateway.jobs.end_watch import EndWatch
from gateway.jobs.progress import JobProgress
from gateway.jobs.ticks import with_ticks

log = structlog.get_logger()

_MAX_PENDING_BYTES = 1024 * 1024
_LOOK_S = 2.0
"""Without news for so long, Redis is asked whether some were lost."""
_GATHER_S = 0.05
_RENEW_S = 3.0
_WATCH_S = 10.0
_JOBS_PER_REQUEST = 1024


class JobWatch:
    """Watches jobs of one namespace, a bounded number at a time."""

    def __init__(
        self,
        transport: Transport,
        store: JobStore,
        ends: EndWatch,
        told: Histogram,
        namespace: str,
        *,
        max_watches: int,
        stopping: asyncio.Event,
    ) -> None:
        self._transport = transport
        self._store = store
        self._ends = ends
        self._told = told
        self._namespace = namespace
        self._max_watches = max_watches
        self._stopping = stopping
        self.num_open = 0
        self._open: Counter[str] = Counter()
        self._watched: Counter[str] = Counter()
        self._renewed_at = -math.inf
        self._reconnected = BroadcastEvent()
        transport.add_reconnect_listener(self._on_reconnect)

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Hold one of the places for a watch, of which a client has half.

        Raises `QueueFullError` when all are taken, or all of this client.
        """
        if self.num_open >= self._max_watches:
            raise QueueFullError(f"{self.num_open} streams are open; poll instead", retry_after_s=5.0)
        if (num_own := self._open[client]) >= max(1, self._max_watches // 2):
            raise QueueFullError(f"{num_own} streams of this client are open; poll instead", retry_after_s=5.0)
        self.num_open += 1
        self._open[client] += 1
        try:
            yield
        finally:
            self.num_open -= 1
            self._open -= Counter([client])

    async def events(self, progress: JobProgress, job_id: str) -> AsyncGenerator[JobEvent | None, None]:
        """Yield everything that the client of `progress` lacks until the job has finished or the gateway stops.

        Yields None when there was no news for a while. Raises `JobNotFoundError`, `StateError` or `TransportError`.
        """
        while not progress.is_finished and not self._stopping.is_set():
            try:
                async with self._messages(job_id) as messages, self._watching(job_id):
                    for event in await self._look(progress, job_id):
                        yield event
                    if not progress.is_finished:
                        async with aclosing(self._live(progress, job_id, messages)) as news:
                            async for event_or_none in news:
                                yield event_or_none
            except SlowConsumerError:
                continue

    async def finished(self, job_id: str, wait_s: float) -> JobRecord:
        """Return the job's record once it has finished, or as it stands after `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        with self._ends.expecting(job_id) as ended:
            while True:
                record = await self._store.get(job_id)
                remaining_s = deadline - time.monotonic()
                if record.status in FINAL_STATUSES or remaining_s <= 0 or self._stopping.is_set():
                    return record
                with suppress(TimeoutError):
                    async with asyncio.timeout(remaining_s):
                        await ended.wait()
                ended.clear()

    async def any_finished(self, job_ids: Sequence[str], wait_s: float) -> list[str]:
        """Return those that have finished, or are not known, once there are some; none after `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        with self._ends.expecting(*job_ids) as ended:
            while not (finished := await self._store.ended(job_ids)):
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0 or self._stopping.is_set():
                    return []
                with suppress(TimeoutError):
                    async with asyncio.timeout(remaining_s):
                        await ended.wait()
                        await asyncio.sleep(_GATHER_S if len(job_ids) > 1 else 0)  # others end at the same time
                ended.clear()
        return finished

    @asynccontextmanager
    async def _watching(self, job_id: str) -> AsyncIterator[None]:
        """Have the job's tokens published while the context is open."""
        self._watched[job_id] += 1
        await self._ask_for([job_id])
        try:
            yield
        finally:
            self._watched[job_id] -= 1
            if not self._watched[job_id]:
                del self._watched[job_id]

    async def _renew(self) -> None:
        """Ask for all jobs that are watched here once more, where that is due: any watch does it for all."""
        if time.monotonic() - self._renewed_at < _RENEW_S:
            return
        self._renewed_at = time.monotonic()
        job_ids = list(self._watched)
        for start in range(0, len(job_ids), _JOBS_PER_REQUEST):
            await self._ask_for(job_ids[start : start + _JOBS_PER_REQUEST])

    async def _ask_for(self, job_ids: Sequence[str]) -> None:
        try:
            request = WatchRequest(job_ids=tuple(job_ids), for_s=_WATCH_S)
            await self._transport.publish(subjects.watch(self._namespace), request)
        except TransportError as error:
            log.info("watch_not_asked_for", num_jobs=len(job_ids), reason=error.message)

    def _on_reconnect(self) -> None:
        """Ask for all and look for all at once: what was asked and told just now may be lost."""
        self._renewed_at = -math.inf
        self._reconnected.fire()

    def _messages(self, job_id: str) -> AbstractAsyncContextManager[Subscription[JobEvent]]:
        return self._transport.subscribe(
            subjects.job_events(self._namespace, job_id), JobEvent, max_pending_bytes=_MAX_PENDING_BYTES
        )

    async def _look(self, progress: JobProgress, job_id: str) -> list[JobEvent]:
        events: list[JobEvent] = []
        while True:
            events += progress.take_state(*await self._store.get_with_tokens(job_id, progress.start))
            if not progress.must_look:
                return events

    async def _live(
        self, progress: JobProgress, job_id: str, messages: AsyncIterator[Received[JobEvent]]
    ) -> AsyncGenerator[JobEvent | None, None]:
        async with aclosing(with_ticks(messages, _LOOK_S, self._stopping, self._reconnected)) as ticks:
            async for received in ticks:
                await self._renew()
                events = [] if received is None else list(progress.take_event(received.body))
                if received is None or progress.must_look:
                    events += await self._look(progress, job_id)
                for event in events:
                    yield event
                if received is not None and events:
                    self._told.observe((tracer.now() - received.arrived_ns) / 1e9)  # whoever had them came for more
                if received is None and not events:
                    yield None
                if progress.is_finished:
                    return
