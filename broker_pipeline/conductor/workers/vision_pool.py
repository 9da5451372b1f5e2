"""Vision workers and how busy each is: a request goes where it is done soonest, and comes back if that worker vanishes.

    worker   in hand   took lately, a request   would be done after
    a        3         10 ms                    4 * 10 ms             ◄── asked next
    b        1         30 ms: a stage's steps   2 * 30 ms
                       fill its device

What a request takes is measured, as time in hand shared by all that were there: a worker whose device has no room
for the tower gets fewer. One that has nothing in hand is taken for faster by and by, until it is tried again.

A session that was in preparation at two deaths is suspected of having caused them. It gets a worker to itself: what is
there is finished, nothing else is asked of that worker until the session is prepared, and should the worker die of it,
nobody else was there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from broker_pipeline.conductor.broadcast_event import BroadcastEvent
from broker_pipeline.messages.workers import WorkerRecord

_RISE, _FALL = 0.1, 0.5  # weight of a request that took longer than the mean, and of one that took less
_HALF_S = 5.0  # idle for so long, a worker is taken for twice as fast


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
    request_s: float | None = field(default=None)
    """Seconds of its time that a request took lately; None before the first was answered."""
    answered_at: float = field(default=0.0)

    def observe(self, seconds: float, num_requests: int, now: float) -> None:
        """Learn from a request that was answered after so long, and was one of so many in hand when it came."""
        took_s = seconds / num_requests
        known_s = took_s if self.request_s is None else self.request_s
        self.request_s = known_s + (_FALL if took_s < known_s else _RISE) * (took_s - known_s)
        self.answered_at = now

    def expected_s(self, now: float) -> float | None:
        """Return the seconds of its time that the next request will take, as far as is known."""
        if self.request_s is None or self.num_requests:
            return self.request_s
        return float(self.request_s * 0.5 ** ((now - self.answered_at) / _HALF_S))

    @property
    def is_usable(self) -> bool:
        """Whether it takes requests."""
        return self.is_alive and self.record.state == "ready"


class VisionPool:
    """The vision workers of one pipeline, by instance."""

    def __init__(self, changed: BroadcastEvent, clock: Callable[[], float] = time.monotonic) -> None:
        """Fire `changed` whenever a worker comes or goes."""
        self._clock = clock
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
        """Take the usable worker that would be done soonest, one not in `avoid` if there is one.

        Where there is none, or `is_alone` and it has other requests, `wait` for a change. It may be gone by then.
        """
        while (worker := self._choose(avoid)) is None:
            await wait()
        worker.request_s = worker.expected_s(self._clock())
        worker.num_requests += 1
        worker.has_suspect = is_alone
        try:
            while is_alone and worker.is_usable and worker.num_requests > 1:
                await wait()
            num_requests, asked_at = worker.num_requests, self._clock()
            yield worker
            worker.observe(self._clock() - asked_at, num_requests, self._clock())
        finally:
            worker.num_requests -= 1
            if worker.has_suspect:
                worker.has_suspect = not (is_alone and worker.is_alive)
                self._changed.fire()

    def _choose(self, avoid: Collection[str]) -> VisionInfo | None:
        free = [worker for worker in self._workers.values() if worker.is_usable and not worker.has_suspect]
        expected = {each.record.instance: each.expected_s(self._clock()) for each in free}
        fastest_s = min((known for known in expected.values() if known is not None), default=1.0)

        def order(worker: VisionInfo) -> tuple[bool, float, str]:
            known_s = expected[worker.record.instance]
            request_s = fastest_s if known_s is None else known_s  # one that has answered nothing yet gets a try
            return worker.record.instance in avoid, (worker.num_requests + 1) * request_s, worker.record.worker

        return min(free, key=order, default=None)
