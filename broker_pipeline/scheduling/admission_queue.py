"""Sessions that hold no KV yet: those being prepared for a route, and those that are prepared and wait for room. Pure.

tentative.put ──► (prepared) ──► add ──► admit: the job whose turn it is, as long as there is room ──┬─► its lane
     ▲                                                                                           │
     └──── take_resumed ◄──── one that was preempted and has no rows at the stages any more ◄────┘
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterator

from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.policies.kept_prefixes import KeptPrefixes
from broker_pipeline.scheduling.policies.kv_steps import KVSteps
from broker_pipeline.scheduling.policies.route_choice import RouteLoad
from broker_pipeline.scheduling.route_table import RouteTable
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState
from broker_pipeline.scheduling.tentative_reservations import TentativeReservations

StepSeconds = Callable[[Route, float], float | None]
_RUNNING_PER_STEP = 16  # running sessions for each step of KV that is left free ahead of them


class AdmissionQueue:
    """Sessions in the order of their jobs' turns, and the room that they will ask for."""

    def __init__(self, limits: SchedulerLimits, ledger: KVLedger, routes: RouteTable, kept: KeptPrefixes) -> None:
        self._limits = limits
        self._kept = kept
        self._ledger = ledger
        self._routes = routes
        self._sessions: list[SessionState] = []
        self._resumed: list[SessionState] = []
        self._on_their_way: dict[str, SessionState] = {}
        """Preempted sessions that are prepared anew: younger ones leave them their room."""
        self.tentative = TentativeReservations(ledger)
        self.steps = KVSteps(limits.kv_step_tokens)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[SessionState]:
        return iter(self._sessions)

    def num_tokens(self, session: SessionState) -> int:
        """Return the KV that a session should have now."""
        return self.steps.num_tokens(session.num_prompt_tokens, session.num_tokens, session.num_kv_tokens)

    def add(self, session: SessionState, now: float) -> None:
        """Let a session wait that is prepared, or that was preempted."""
        session.waiting_since = now
        self.tentative.put(session.key.session, session.route, self.num_tokens(session))
        bisect.insort(self._sessions, session, key=lambda waiting: (waiting.turn, waiting.order))

    def take(self, session: str, route: Route, num_tokens: int) -> None:
        """Reserve room tentatively for a session to be prepared for a route; of one that idled, measure steps anew.

        What is kept there makes way by now, and for steps of some that run.
        """
        if not self.num_sessions(lane := self._routes.lane(route)):
            lane.measure_again()
        self.tentative.put(session, route, num_tokens)
        num_ahead = self._limits.kv_step_tokens * (1 + len(lane.running) // _RUNNING_PER_STEP)
        for key in route.key:
            self._kept.make_room(key, self.tentative.num_tokens(key) + num_ahead)

    def num_sessions(self, lane: Lane) -> int:
        """Return the sessions that run on a lane, wait for it or are prepared for it."""
        return len(lane.running) + self.tentative.num_sessions(lane.route)

    def loads(self, now: float, step_s: StepSeconds, seen_step_s: StepSeconds) -> list[RouteLoad]:
        """Return the open routes as a new session finds them.

        `step_s` tells what a step of so many tokens takes, `seen_step_s` of no more than there were.
        """
        lanes = [self._routes.lane(route) for route in self._routes.open_routes]
        sizes = [lane.usual_tokens for lane in lanes if lane.usual_tokens]
        usual_tokens = sum(sizes) / len(sizes) if sizes else 1.0
        return [
            RouteLoad(
                lane.route,
                self.num_sessions(lane),
                self.tentative.room(lane.route),
                step_s(lane.route, usual_tokens) if len(lanes) > 1 else None,
                seen_step_s(lane.route, usual_tokens) if len(lanes) > 1 else None,
                0.0 if lane.running else max(0.0, now - lane.answered_at),
            )
            for lane in lanes
        ]

    def forget(self, session: str) -> None:
        """Keep no room for a session that is to be prepared: it is, or nobody wants it any more."""
        self.tentative.drop(session)
        self._on_their_way.pop(session, None)

    def take_resumed(self) -> list[SessionState]:
        """Return preempted sessions that have room again; they wait here no more, and are to be prepared and added."""
        resumed, self._resumed = self._resumed, []
        self._on_their_way |= {session.key.session: session for session in resumed}
        return resumed

    def remove(self, session: SessionState) -> None:
        """Let a session wait no more, if it does."""
        self.tentative.drop(session.key.session)
        if session in self._sessions:
            self._sessions.remove(session)

    def admit(self, now: float, wanted: set[str]) -> None:
        """Give KV to waiting sessions, by their turns, and put them into their lanes.

        One that has waited for `overtake_s` without there being room, or was preempted, keeps its workers' room from
        all behind it. On workers that are `wanted` by running sessions, there is room for nobody.
        """
        if all(len(lane.running) >= self._limits.max_sessions for lane in self._routes.lanes):
            return
        blocked = set(wanted)
        self._sessions = [session for session in self._sessions if not self._is_admitted(session, blocked, now)]
        if len(self._kept):
            self._take_kept()

    def _take_kept(self) -> None:
        """Let nobody wait for what is kept: there is room coming for all who wait, or nothing is kept any more."""
        needed: Counter[str] = Counter()
        for session in (*self._sessions, *self._resumed, *self._on_their_way.values()):
            for key in session.route.key:
                needed[key] += self.num_tokens(session)
        for key, num_tokens in needed.items():
            self._kept.make_room(key, num_tokens)

    def _is_admitted(self, session: SessionState, blocked: set[str], now: float) -> bool:
        keys, lane = session.route.key, self._routes.lane(session.route)
        if len(lane.running) >= self._limits.max_sessions or not blocked.isdisjoint(keys):
            return False
        num_tokens = self.num_tokens(session)
        if session.is_preempted and (route := self._route_with_room(session, num_tokens)) is not None:
            session.route = route  # whose room younger sessions leave alone
            self._resumed.append(session)
            return True
        if not session.is_preempted and self._free_tokens(session.route, session.order) >= num_tokens:
            is_reserved = self._ledger.reserve(session.key, num_tokens, session.route)
            assert is_reserved, "there is room"
            self.tentative.drop(session.key.session)
            session.num_reserved_tokens = num_tokens
            lane.start(session)
            return True
        if session.is_preempted or now - session.waiting_since >= self._limits.overtake_s:
            blocked.update(keys)
        return False

    def _route_with_room(self, session: SessionState, num_tokens: int) -> Route | None:
        """Return where a preempted session can go on: its own route, or else another one that holds all of it."""
        if self._free_tokens(session.route, session.order) >= num_tokens:
            return session.route
        return next(
            (
                route
                for route in self._routes.open_routes
                if route.kv_capacity_tokens >= session.num_kv_tokens
                and min(self.tentative.room(route), self._free_tokens(route, session.order)) >= num_tokens
            ),
            None,
        )

    def _free_tokens(self, route: Route, order: int) -> int:
        """Return the tokens free on a route, less those of older sessions that are on their way back to it."""
        coming = [each for each in (*self._on_their_way.values(), *self._resumed) if each.order < order]
        return min(
            worker.kv_capacity_tokens
            - self._ledger.used_tokens(worker.key)
            - sum(self.num_tokens(each) for each in coming if worker.key in each.route.key)
            for worker in route.workers
        )
