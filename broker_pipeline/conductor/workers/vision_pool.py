"""Vision workers and how busy each is: a request goes to the least loaded one, and comes back if that one vanishes.

A session that was in preparation at two deaths is suspected of having caused them. It gets a worker to itself: what is
there is finished, nothing else is asked of that worker until the session is prepared, and should the worker die of it,
nobody else was there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from broker_pipeline.conductor.broadcast_event import BroadcastEvent
from broker_pipeline.messages.workers import WorkerRecord


@dataclass(slots=True, eq=False)
class VisionInfo:
    """One instance."""

    record: WorkerRecord
    is_alive: bool = True
    num_requests: int = field(default=0)
    num_deaths: int = field(default=0)
    """Rises when it dies or falls silent: what it had in hand is lost, and may be the cause."""
    num_outages: int = field(default=0)
    """Rises when the broker was away: what it was asked may be lost, and nobody is the cause."""
    has_suspect: bool = field(default=False)
    """Whether it is, or was when it died, one suspected session's alone."""

    @property
    def is_usable(self) -> bool:
        """Whether it takes requests."""
        return self.is_alive and self.record.state == "ready"


class VisionPool:
    """The vision workers of one pipeline, by instance."""

    def __init__(self, changed: BroadcastEvent) -> None:
        """Fire `changed` whenever a worker comes or goes."""
        self._workers: dict[str, VisionInfo] = {}
        self._changed = changed

    @property
    def workers(self) -> tuple[VisionInfo, ...]:
        """All of them, usable or not."""
        return tuple(self._workers.values())

    @property
    def num_usable(self) -> int:
        """Workers that take requests."""
        return sum(worker.is_usable for worker in self._workers.values())

    def update(self, record: WorkerRecord) -> None:
        """Use a worker, or note its new state."""
        known = self._workers.setdefault(record.instance, VisionInfo(record))
        known.record = record
        self._changed.fire()

    def set_alive(self, key: str, is_alive: bool) -> None:
        """Note whether a worker gives signs of life."""
        worker = self._workers.get(key)
        if worker is not None and worker.is_alive != is_alive:
            worker.is_alive = is_alive
            worker.has_suspect &= not is_alive
            worker.num_deaths += not is_alive
            self._changed.fire()

    def leave(self, key: str) -> None:
        """Forget a worker; what it was asked is asked again elsewhere."""
        if worker := self._workers.pop(key, None):
            worker.is_alive = False
            worker.num_deaths += 1
            self._changed.fire()

    def lose_requests(self) -> None:
        """Ask everything again: the broker was away, so that requests and answers may be gone."""
        for worker in self._workers.values():
            worker.num_outages += 1
        self._changed.fire()

    def had_suspect(self, record: WorkerRecord) -> bool:
        """Whether a suspected session was in preparation in a worker's process, by another worker that shares it."""
        process = record.host, record.pid
        return record.pid != 0 and any(
            worker.has_suspect and (worker.record.host, worker.record.pid) == process
            for worker in self._workers.values()
        )

    @asynccontextmanager
    async def borrow(
        self, wait: Callable[[], Awaitable[None]], avoid: Collection[str] = (), *, is_alone: bool = False
    ) -> AsyncIterator[VisionInfo]:
        """Take the least loaded usable worker, one not in `avoid` if there is one.

        Where there is none, or `is_alone` and it has other requests, `wait` for a change. It may be gone by then.
        """
        while (worker := self._choose(avoid)) is None:
            await wait()
        worker.num_requests += 1
        worker.has_suspect = is_alone
        try:
            while is_alone and worker.is_usable and worker.num_requests > 1:
                await wait()
            yield worker
        finally:
            worker.num_requests -= 1
            if worker.has_suspect:
                worker.has_suspect = not (is_alone and worker.is_alive)
                self._changed.fire()

    def _choose(self, avoid: Collection[str]) -> VisionInfo | None:
        free = [worker for worker in self._workers.values() if worker.is_usable and not worker.has_suspect]
        return min(
            free, key=lambda each: (each.record.instance in avoid, each.num_requests, each.record.worker), default=None
        )
