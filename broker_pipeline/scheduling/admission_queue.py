"""Sessions that hold no KV yet: those being prepared for a route, and those that are prepared and wait for room. Pure.

tentative.put ──► (prepared) ──► add ──► admit: the oldest job first, as long as there is room ──► its lane
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.policies.route_choice import RouteLoad
from broker_pipeline.scheduling.route_table import RouteTable
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState
from broker_pipeline.scheduling.tentative_reservations import TentativeReservations


class AdmissionQueue:
    """Sessions in the order of their jobs, and the room that they will ask for."""

    def __init__(self, limits: SchedulerLimits, ledger: KVLedger, routes: RouteTable) -> None:
        self._limits = limits
        self._ledger = ledger
        self._routes = routes
        self._sessions: list[SessionState] = []
        self.tentative = TentativeReservations(ledger)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[SessionState]:
        return iter(self._sessions)

    def add(self, session: SessionState, now: float) -> None:
        """Let a prepared session wait."""
        session.waiting_since = now
        self.tentative.put(session.key.session, session.route, session.num_kv_tokens)
        bisect.insort(self._sessions, session, key=lambda waiting: waiting.order)

    def take(self, session: str, route: Route, num_tokens: int) -> None:
        """Reserve room tentatively for a session to be prepared for a route; of one that idled, measure steps anew."""
        if not self.num_sessions(lane := self._routes.lane(route)):
            lane.measure_again()
        self.tentative.put(session, route, num_tokens)

    def num_sessions(self, lane: Lane) -> int:
        """Return the sessions that run on a lane, wait for it or are prepared for it."""
        return len(lane.running) + self.tentative.num_sessions(lane.route)

    def loads(self, now: float, step_s: Callable[[Route, float], float | None]) -> list[RouteLoad]:
        """Return the open routes as a new session finds them; `step_s` tells what a step of so many tokens takes."""
        lanes = [self._routes.lane(route) for route in self._routes.open_routes]
        sizes = [lane.usual_tokens for lane in lanes if lane.usual_tokens]
        usual_tokens = sum(sizes) / len(sizes) if sizes else 1.0
        return [
            RouteLoad(
                lane.route,
                self.num_sessions(lane),
                self.tentative.room(lane.route),
                step_s(lane.route, usual_tokens) if len(lanes) > 1 else None,
                0.0 if lane.running else max(0.0, now - lane.answered_at),
            )
            for lane in lanes
        ]

    def remove(self, session: SessionState) -> None:
        """Let a session wait no more, if it does."""
        self.tentative.drop(session.key.session)
        if session in self._sessions:
            self._sessions.remove(session)

    def admit(self, now: float) -> None:
        """Give KV to waiting sessions, the oldest job first, and put them into their lanes.

        One that has waited for `overtake_s` without there being room keeps its workers' room from all younger ones.
        """
        if all(len(lane.running) >= self._limits.max_sessions for lane in self._routes.lanes):
            return
        blocked: set[str] = set()
        self._sessions = [session for session in self._sessions if not self._is_admitted(session, blocked, now)]

    def _is_admitted(self, session: SessionState, blocked: set[str], now: float) -> bool:
        keys, lane = session.route.key, self._routes.lane(session.route)
        if len(lane.running) >= self._limits.max_sessions or not blocked.isdisjoint(keys):
            return False
        if self._ledger.reserve(session.key, session.num_kv_tokens, session.route):
            self.tentative.drop(session.key.session)
            lane.start(session)
            return True
        if now - session.waiting_since >= self._limits.overtake_s:
            blocked.update(keys)
        return False
