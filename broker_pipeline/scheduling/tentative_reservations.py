"""KV that sessions without any will ask for: those being prepared for a route, and those that wait for room on it.

What is kept for nobody counts as room: it is closed as soon as somebody asks for it (`KeptPrefixes`).
"""

from __future__ import annotations

from collections import Counter

from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.routes import Route


class TentativeReservations:
    """One reservation per session, summed up by worker."""

    def __init__(self, ledger: KVLedger) -> None:
        self._ledger = ledger
        self._held: dict[str, tuple[Route, int]] = {}
        self._num_tokens: Counter[str] = Counter()
        self._num_sessions: Counter[tuple[str, ...]] = Counter()

    def put(self, session: str, route: Route, num_tokens: int) -> None:
        """Reserve room on every worker of a route, in place of what the session has reserved before."""
        self.drop(session)
        self._held[session] = (route, num_tokens)
        self._num_sessions[route.key] += 1
        for key in route.key:
            self._num_tokens[key] += num_tokens

    def drop(self, session: str) -> None:
        """Reserve nothing any more: the session has its room, or needs none."""
        route, num_tokens = self._held.pop(session, (None, 0))
        if route is not None:
            self._num_sessions[route.key] -= 1
            if not self._num_sessions[route.key]:
                del self._num_sessions[route.key]
        for key in route.key if route else ():
            self._num_tokens[key] -= num_tokens
            if not self._num_tokens[key]:
                del self._num_tokens[key]

    def num_sessions(self, route: Route) -> int:
        """Return the sessions that have reserved room on a route."""
        return self._num_sessions[route.key]

    def num_tokens(self, key: str) -> int:
        """Return the tokens that are reserved on a worker."""
        return self._num_tokens[key]

    def room(self, route: Route) -> int:
        """Return the tokens of the fullest worker of a route left unreserved; negative when overbooked."""
        return min(
            worker.kv_capacity_tokens - self._ledger.needed_tokens(worker.key) - self._num_tokens[worker.key]
            for worker in route.workers
        )
