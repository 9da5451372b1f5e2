"""What ended sessions leave in the KV of a route, for those that begin alike, until somebody needs the room. Pure.

    running ─┬─► cancelled, lost or preempted ───────────────────────────────────────────────┐
             └─► finished ──► kept: nobody's ─┬─► copied: used last, so that it goes last     ▼
                     ▲              ▲         ├─► somebody needs room: used first, goes first ├─► closed
                     │              └─────────┤   before anybody waits or is preempted        │
                     │                        ├─► one that finished later has all of it ──────┤
                     │                        ├─► its route is open no more, or a stage fails ┤
                     └── begins with a copy ◄─┴─► who has begun with it was lost ─────────────┘

Stages are told by closes that leave the first tokens (`Close.num_kept_tokens`), and later by closes like any other, so
all of a route keep and drop the same. What is kept is whole blocks of prompt and output, in as much room as they take.
In the ledger it is used, and so never overbooked; for whoever looks for room it is free (`TentativeReservations.room`).
Sessions that are only being prepared have it closed already, so that it is free by the time that they are.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker_pipeline.scheduling.kv_ledger import KVLedger, SessionKey
from broker_pipeline.scheduling.policies.prefixes import BLOCK_TOKENS, PrefixTable, computed_keys
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import Prefix, SessionState


class KeptPrefixes:
    """The finished sessions of one scheduler whose KV is kept, by when it was used last."""

    def __init__(self, share: float, ledger: KVLedger) -> None:
        """Keep at most a `share` of each worker's KV."""
        self._share = share
        self._ledger = ledger
        self._kept: dict[SessionKey, tuple[SessionState, PrefixTable]] = {}
        self._ends: dict[tuple[PrefixTable, bytes], SessionKey] = {}
        """By the key of the last block."""
        self.num_tokens = 0
        self.num_hits = 0
        """Sessions that have begun with a kept prefix."""
        self.num_hit_tokens = 0
        self.num_evictions = 0
        """Prefixes closed since somebody, or a newer one, needed the room."""

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, session: SessionState, table: PrefixTable) -> None:
        """Keep what a finished session has computed, which is just being closed; its lane's table knows it no more."""
        keys = computed_keys(session)
        num_tokens = len(keys) * BLOCK_TOKENS
        if not (table.keeps and 0 < num_tokens <= self._share * session.route.kv_capacity_tokens):
            return
        for key in keys:
            if (table, key) in self._ends:  # it has all of that one
                self._close(self._ends[table, key])
        session.prefix_keys = keys
        table.add(session)
        self._kept[session.key] = (session, table)
        self._ends[table, keys[-1]] = session.key
        self.num_tokens += num_tokens
        self._ledger.keep(session.key, num_tokens, session.route)
        for worker in session.route.workers:
            while self._ledger.kept_tokens(worker.key) > self._share * worker.kv_capacity_tokens:
                self._evict(worker.key)

    def use(self, prefix: Prefix) -> None:
        """Note that a session begins with a prefix, whether that is kept or of a running session."""
        if kept := self._kept.pop(prefix.source, None):
            self._kept[prefix.source] = kept
            self.num_hits += 1
            self.num_hit_tokens += prefix.num_tokens

    def make_room(self, key: str, num_tokens: int) -> None:
        """Close what gives a worker room for `num_tokens`, once it has answered: all where that is not enough."""
        while self._ledger.kept_tokens(key) and self._ledger.coming_tokens(key) < num_tokens:
            self._evict(key)

    def distrust(self, prefix: Prefix | None) -> None:
        """Close a prefix, if it is kept: a session that has begun with it was lost."""
        if prefix is not None and prefix.source in self._kept:
            self._close(prefix.source)

    def tidy(self, open_routes: Iterable[Route]) -> None:
        """Close what is kept on other routes."""
        open_keys = {route.key for route in open_routes}
        for key, (session, _) in list(self._kept.items()):
            if session.route.key not in open_keys:
                self._close(key)

    def _evict(self, key: str) -> None:
        self._close(next(kept for kept, (session, _) in self._kept.items() if key in session.route.key))
        self.num_evictions += 1

    def _close(self, kept: SessionKey) -> None:
        session, table = self._kept.pop(kept)
        del self._ends[table, session.prefix_keys[-1]]
        self.num_tokens -= len(session.prefix_keys) * BLOCK_TOKENS
        table.remove(session)
        self._ledger.close(kept, session.route)
