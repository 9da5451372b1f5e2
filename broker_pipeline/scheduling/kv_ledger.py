"""How many tokens of KV every stage worker has promised to whom, so that no stage is ever asked for more than it has.

    reserve ──► open ──► … ──► close asked for ──► carried by an envelope ──► that envelope is answered ──► free
    └──────────────────────── counted as used, since the stage may still hold it ────────────────────────┘

A close counts only once the stage has answered for it: envelopes travel on two connections and may overtake each
other, and one may be lost. One that keeps the first tokens frees the others in the same way; what is kept is nobody's
(`KeptPrefixes`), and is closed like a session.
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


class Close(NamedTuple):
    """A session that has ended; the KV of its first `num_kept_tokens` stays at the stages, until it is closed anew."""

    session: SessionKey
    num_kept_tokens: int = 0


class KVLedger:
    """Reservations and pending closes of every worker, by the worker's key."""

    def __init__(self) -> None:
        self._reserved: dict[str, dict[SessionKey, int]] = {}
        self._closing: dict[str, dict[SessionKey, int]] = {}
        """What is to be closed, with the tokens that are kept of each."""
        self._kept: dict[str, dict[SessionKey, None]] = {}
        self._capacity: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._num_kept: dict[str, int] = {}
        """Those of the used tokens that nobody needs."""
        self._held: Counter[SessionKey] = Counter()

    def add_worker(self, worker: StageInfo) -> None:
        """Know a worker; what a known one holds stays."""
        self._capacity[worker.key] = worker.kv_capacity_tokens
        self._used.setdefault(worker.key, 0)
        self._reserved.setdefault(worker.key, {})
        self._closing.setdefault(worker.key, {})
        self._kept.setdefault(worker.key, {})
        self._num_kept.setdefault(worker.key, 0)

    def remove_worker(self, key: str) -> None:
        """Forget a worker and all that it held: its process is gone."""
        for table in (self._reserved, self._closing, self._kept, self._capacity, self._used, self._num_kept):
            table.pop(key, None)

    def free_tokens(self, route: Route) -> int:
        """Return the tokens that the fullest worker of a route has left."""
        return min(self._capacity[worker.key] - self._used[worker.key] for worker in route.workers)

    def used_tokens(self, key: str) -> int:
        """Return the tokens that a worker holds or may still hold."""
        return self._used[key]

    def kept_tokens(self, key: str) -> int:
        """Return those of the used tokens that are kept for nobody."""
        return self._num_kept.get(key, 0)

    def needed_tokens(self, key: str) -> int:
        """Return the other ones."""
        return self._used[key] - self._num_kept[key]

    def coming_tokens(self, key: str) -> int:
        """Return the tokens that a worker has left or will have, once it has answered for all that is to be closed."""
        closing = sum(self._reserved[key][session] - kept for session, kept in self._closing[key].items())
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
        for key in route.key:
            if session in self._reserved.get(key, {}):
                self._closing[key][session] = 0
                if self._kept[key].pop(session, _ABSENT) is not _ABSENT:
                    self._num_kept[key] -= self._reserved[key][session]

    def keep(self, session: SessionKey, num_tokens: int, route: Route) -> None:
        """Ask for a session's KV back but for its first tokens, on every worker of its route, which are all known."""
        for key in route.key:
            self._closing[key][session] = num_tokens
            self._kept[key][session] = None
            self._num_kept[key] += self._reserved[key][session]

    def pending_closes(self, route: Route, limit: int) -> tuple[Close, ...]:
        """Return what an envelope along a route should close; a stage that lacks a session ignores its close."""
        found = {each: None for key in route.key for each in self._closing[key].items()}
        return tuple([Close(session, kept) for session, kept in found if self._may_close(session, kept)])[:limit]

    def has_pending_closes(self, key: str) -> bool:
        """Say whether a worker has yet to hear of a close."""
        return any(self._may_close(*each) for each in self._closing.get(key, {}).items())

    def _may_close(self, session: SessionKey, num_kept: int) -> bool:
        return num_kept > 0 or session not in self._held  # what can be copied of it is what is kept

    def hold(self, session: SessionKey) -> None:
        """Let nobody close a session yet: an envelope under way has its KV copied."""
        self._held[session] += 1

    def let_go(self, session: SessionKey) -> None:
        """Undo one `hold`."""
        self._held[session] -= 1
        if not self._held[session]:
            del self._held[session]

    def settle(self, closes: Iterable[Close], workers: Collection[StageInfo]) -> None:
        """Free what these workers have answered for; what has to be closed by now, and was kept then, is not."""
        keys = [worker.key for worker in workers if worker.key in self._reserved]
        for session, num_kept in closes:
            for key in keys:
                if self._closing[key].get(session) == num_kept:
                    del self._closing[key][session]
                    self._free(key, session, num_kept)

    def _free(self, key: str, session: SessionKey, num_kept: int) -> None:
        num_freed = self._reserved[key].pop(session) - num_kept
        self._used[key] -= num_freed
        if num_kept:
            self._reserved[key][session] = num_kept
            self._num_kept[key] -= num_freed


_ABSENT = object()
