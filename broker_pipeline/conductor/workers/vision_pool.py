"""Vision workers and how busy each is: a request goes to the least loaded one, and comes back if that one vanishes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from broker_pipeline.conductor.broadcast_event import BroadcastEvent
from broker_pipeline.messages.workers import WorkerRecord


@dataclass(slots=True, eq=False)
class VisionInfo:
    """One instance. `num_lost` rises whenever what it was asked may have got lost."""

    record: WorkerRecord
    is_alive: bool = True
    num_requests: int = field(default=0)
    num_lost: int = field(default=0)

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
            worker.num_lost += not is_alive
            self._changed.fire()

    def leave(self, key: str) -> None:
        """Forget a worker; what it was asked is asked again elsewhere."""
        if worker := self._workers.pop(key, None):
            worker.is_alive = False
            worker.num_lost += 1
            self._changed.fire()

    def lose_requests(self) -> None:
        """Ask everything again: the broker was away, so that requests and answers may be gone."""
        for worker in self._workers.values():
            worker.num_lost += 1
        self._changed.fire()

    @contextmanager
    def borrow(self, avoid: Collection[str] = ()) -> Iterator[VisionInfo | None]:
        """Take the least loaded usable worker, one not in `avoid` if there is one; None when there is none at all."""
        usable = [worker for worker in self._workers.values() if worker.is_usable]
        if not usable:
            yield None
            return
        worker = min(usable, key=lambda each: (each.record.instance in avoid, each.num_requests, each.record.worker))
        worker.num_requests += 1
        try:
            yield worker
        finally:
            worker.num_requests -= 1
