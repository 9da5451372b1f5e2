"""Gives running sessions more KV when they have filled theirs; without room, the youngest sessions are preempted. Pure.

stalled, oldest job first ──┬─► room on all workers of its route: grows, and is ready again
                            ├─► closes are on their way that give it room, those of kept prefixes first: waits
                            └─► the youngest session on the full worker is preempted (it may be this one)
"""

from __future__ import annotations

from dataclasses import replace

from broker_pipeline.scheduling.admission_queue import AdmissionQueue
from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.policies.kept_prefixes import KeptPrefixes
from broker_pipeline.scheduling.route_table import RouteTable
from broker_pipeline.scheduling.session_state import SessionState


class Growth:
    """Works on the sessions of one scheduler, by name."""

    def __init__(
        self,
        sessions: dict[str, SessionState],
        ledger: KVLedger,
        routes: RouteTable,
        waiting: AdmissionQueue,
        kept: KeptPrefixes,
    ) -> None:
        self._sessions = sessions
        self._ledger = ledger
        self._routes = routes
        self._waiting = waiting
        self._kept = kept
        self.num_preemptions = 0

    def grow(self, now: float) -> set[str]:
        """Let stalled sessions grow; return the workers whose room is theirs, since they still wait for some."""
        stalled = [session for lane in self._routes.lanes for session in lane.stalled.values()]
        wanted: set[str] = set()
        for session in sorted(stalled, key=lambda each: each.order):
            if self._sessions.get(session.key.session) is not session:
                continue  # preempted for an older one
            num_tokens = self._waiting.num_tokens(session)
            if wanted.isdisjoint(session.route.key) and self._ledger.grow(session.key, num_tokens, session.route):
                session.num_reserved_tokens, session.has_grown = num_tokens, True
                self._routes.lane(session.route).make_ready(session)
            else:
                self._make_room(session, num_tokens - session.num_reserved_tokens, now)
                wanted.update(session.route.key)
        return wanted

    def _make_room(self, session: SessionState, num_tokens: int, now: float) -> None:
        for key in session.route.key:
            self._kept.make_room(key, num_tokens)
            while self._ledger.coming_tokens(key) < num_tokens:
                youngest = max(self._running_on(key), key=lambda each: each.order)
                self._preempt(youngest, now)
                if youngest is session:
                    return

    def _running_on(self, key: str) -> list[SessionState]:
        lanes = [lane for lane in self._routes.lanes if key in lane.route.key]
        return [session for lane in lanes for session in lane.running.values()]

    def _preempt(self, session: SessionState, now: float) -> None:
        """Let a session wait with the tokens that it has: as another state, so that answers under way are not its."""
        self._routes.lane(session.route).remove(session.key)
        self._ledger.close(session.key, session.route)
        waits = replace(
            session,
            prefix=None,
            num_computed_tokens=0,
            num_reserved_tokens=0,
            has_grown=False,
            is_open=False,
            is_preempted=True,
        )
        self._sessions[session.key.session] = waits
        self._waiting.add(waits, now)
        self.num_preemptions += 1
