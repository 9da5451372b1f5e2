"""How many tokens of KV every stage worker has promised to whom, so that no stage is ever asked for more than it has.

    reserve ──► open ──► … ──► close asked for ──► carried by an envelope ──► that envelope is answered ──► free
    └──────────────────────── counted as used, since the stage may still hold it ────────────────────────┘

A close counts only once the stage has answered for it: envelopes travel on two connections and may overtake each
other, and one may be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from broker_pipeline.scheduling.routes import Route, StageInfo


class SessionKey(NamedTuple):
    """One attempt of one session: what stages hold KV under."""

    session: str
    attempt: int


class KVLedger:
    """Reservations and pending closes of every worker, by the worker's key."""

    def __init__(self) -> None:
        self._reserved: dict[str, dict[SessionKey, int]] = {}
        self._closing: dict[str, dict[SessionKey, None]] = {}
        self._capacity: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._held: Counter[SessionKey] = Counter()

    def add_worker(self, worker: StageInfo) -> None:
        """Know a worker; what a known one holds stays."""
        self._capacity[worker.key] = worker.kv_capacity_tokens
        self._used.setdefault(worker.key, 0)
        self._reserved.setdefault(worker.key, {})
        self._closing.setdefault(worker.key, {})

    def remove_worker(self, key: str) -> None:
        """Forget a worker and all that it held: its process is gone."""
        for table in (self._reserved, self._closing, self._capacity, self._used):
            table.pop(key, None)

    def free_tokens(self, route: Route) -> int:
        """Return the tokens that the fullest worker of a route has left."""
        return min(self._capacity[worker.key] - self._used[worker.key] for worker in route.workers)

    def used_tokens(self, key: str) -> int:
        """Return the tokens that a worker holds or may still hold."""
        return self._used[key]

    def coming_tokens(self, key: str) -> int:
        """Return the tokens that a worker has left or will have, once it has answered for all that is to be closed."""
        closing = sum(self._reserved[key][session] for session in self._closing[key])
        return self._capacity[key] - self._used[key] + closing

    def grow(self, session: SessionKey, num_tokens: int, route: Route) -> bool:
        """Take more for a session, up to `num_tokens` in all, on every worker of its route, or nothing at all."""
        more = num_tokens - self._reserved[route.key[0]][session]
        if self.free_tokens(route) < more:
            return False
        for key in route.key:
            self._reserved[key][session] = num_tokens
            self._used[key] += more
        return True

    def reserve(self, session: SessionKey, num_tokens: int, route: Route) -> bool:
        """Take `num_tokens` on every worker of a route, or nothing at all and return False."""
        if self.free_tokens(route) < num_tokens:
            return False
        for worker in route.workers:
            assert session not in self._reserved[worker.key], f"{session} is reserved twice"
            self._reserved[worker.key][session] = num_tokens
            self._used[worker.key] += num_tokens
        return True

    def close(self, session: SessionKey, route: Route) -> None:
        """Ask for a session's KV back on every worker of its route that is still known."""
        for worker in route.workers:
            if session in self._reserved.get(worker.key, {}):
                self._closing[worker.key][session] = None

    def pending_closes(self, route: Route, limit: int) -> tuple[SessionKey, ...]:
        """Return what an envelope along a route should close; a stage that lacks a session ignores its close."""
        found = {session: None for worker in route.workers for session in self._closing[worker.key]}
        found = {session: None for session in found if session not in self._held} if self._held else found
        return tuple(found)[:limit]

    def has_pending_closes(self, key: str) -> bool:
        """Say whether a worker has yet to hear of a close."""
        closing = self._closing.get(key, {})
        return bool(closing) and not (self._held and closing.keys() <= self._held.keys())

    def hold(self, session: SessionKey) -> None:
        """Let nobody close a session yet: an envelope under way has its KV copied."""
        self._held[session] += 1

    def let_go(self, session: SessionKey) -> None:
        """Undo one `hold`."""
        self._held[session] -= 1
        if not self._held[session]:
            del self._held[session]

    def settle(self, closes: Iterable[SessionKey], workers: Collection[StageInfo]) -> None:
        """Free what these workers have answered for."""
        keys = [worker.key for worker in workers if worker.key in self._reserved]
        for session in closes:
            for key in keys:
                if self._closing[key].pop(session, _ABSENT) is not _ABSENT:
                    self._used[key] -= self._reserved[key].pop(session)


_ABSENT = object()
