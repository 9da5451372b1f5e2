"""Decides what every stage computes next. Synchronous and pure: no I/O, no clock, no tensors on a device.

    assign ──► (the vision worker prepares) ──► add ──► plan ──► complete ──┬──► plan ──► …
                                                                            ├──► release   finished, or not wanted
                                                                            └──► Lost      needs a new attempt

The caller passes the time, sends what `plan` returns, hands every answer to `complete`, tells what happens to workers
(`join`, `drain`, `suspend`, `leave`), and gives up what `batches` finds late. A session that the scheduler returns as
`Lost` is the caller's again: it comes back by `add` as a new attempt, with all tokens that it had. That replay is the
only way of recovery, whatever was lost and however, and of those that `take_resumed` returns.

The idea of scheduling by tokens not computed yet, in place of prefill and decode phases, is vLLM v1's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from broker_pipeline.errors import Failure, KVCapacityError, RouteLostError, StageError
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.scheduling.admission_queue import AdmissionQueue
from broker_pipeline.scheduling.answers import BatchAnswer, suspects_of, workers_passed
from broker_pipeline.scheduling.batch_planner import BatchPlanner
from broker_pipeline.scheduling.growth import Growth
from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import Lost, Outcome, PlannedBatch, PlannedSegment, Sampled
from broker_pipeline.scheduling.policies.kept_prefixes import KeptPrefixes
from broker_pipeline.scheduling.policies.route_choice import (
    RouteLoad,
    Unwanted,
    choose_route,
    stragglers,
    worth_moving,
)
from broker_pipeline.scheduling.route_table import RouteTable
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.session_state import SessionState

_NOTHING_UNWANTED = Unwanted()
_MOST_SUBJECTS = 4096


class Scheduler:
    """Sessions, routes, KV and microbatches of one pipeline in one epoch."""

    def __init__(self, num_layers: int, limits: SchedulerLimits | None = None) -> None:
        limits = limits or SchedulerLimits()
        self.ledger = KVLedger()
        self.routes = RouteTable(num_layers)
        self._sessions: dict[str, SessionState] = {}
        self._route_of: dict[str, tuple[str, ...]] = {}
        """Keys of the routes that sessions about something went to, those asked for last at the end."""
        self.kept = KeptPrefixes(limits.kept_prefix_share, self.ledger)
        self._waiting = AdmissionQueue(limits, self.ledger, self.routes, self.kept)
        self.growth = Growth(self._sessions, self.ledger, self.routes, self._waiting, self.kept)
        self.kv_steps = self._waiting.steps
        self.batches = BatchPlanner(limits, self.ledger, self.routes, self.kept)

    # --- workers ----------------------------------------------------------------------------------------------------

    def join(self, worker: StageInfo) -> None:
        """Use a worker: a new one, or a suspended one that answered again."""
        self.ledger.add_worker(worker)
        self.routes.join(worker)
        self.kept.tidy(self.routes.open_routes)

    def drain(self, key: str) -> None:
        """Let a worker finish its sessions and give it no new ones."""
        self.routes.drain(key)
        self.kept.tidy(self.routes.open_routes)

    def suspend(self, key: str, failure: Failure) -> list[Lost]:
        """Stop using a worker that does not answer. Its KV counts as held until it has answered for it."""
        return self._lose_lanes(self.routes.suspend(key), failure)

    def leave(self, key: str, failure: Failure) -> list[Lost]:
        """Forget a worker whose process has ended."""
        lost = self._lose_lanes(self.routes.leave(key), failure)
        self.ledger.remove_worker(key)
        self.batches.forget_worker(key)
        return lost

    # --- sessions ---------------------------------------------------------------------------------------------------

    def assign(
        self,
        session: str,
        num_tokens: int,
        now: float = 0.0,
        unwanted: Unwanted = _NOTHING_UNWANTED,
        *,
        limit: int = 0,
        subject: str = "",
    ) -> Route | None:
        """Choose the route for a session to be prepared, which will begin with about `num_tokens` (see `choose_route`).

        Sessions of one `subject`, such as a picture, go to one route where that is as good as others. None when no open
        route can ever hold that many, or its `limit`. The choice counts against the route's room until `add` or
        `release`.
        """
        self._waiting.tentative.drop(session)
        longest = max(num_tokens, limit)
        loads = [load for load in self._loads(now) if load.route.kv_capacity_tokens >= longest]
        if not loads:
            return None
        best = choose_route(loads, num_tokens, unwanted, self._route_of.pop(subject, ()))
        if subject:
            self._route_of[subject] = best.key
            if len(self._route_of) > _MOST_SUBJECTS:
                del self._route_of[next(iter(self._route_of))]
        self._waiting.take(session, best, num_tokens)
        return best

    def num_sessions(self, key: str) -> int:
        """Return the sessions that run on a worker, wait for it or are prepared for it."""
        return sum(self._waiting.num_sessions(lane) for lane in self.routes.lanes if key in lane.route.key)

    def _loads(self, now: float) -> list[RouteLoad]:
        return self._waiting.loads(now, self.batches.step_s, self.batches.seen_step_s)

    def room(self) -> int:
        """Return the KV tokens of the emptiest route that nobody has, waits for or is being prepared for."""
        return max((self._waiting.tentative.room(route) for route in self.routes.open_routes), default=0)

    def longest_session(self) -> int:
        """Return the tokens of the longest session that any open route can hold."""
        return max((route.kv_capacity_tokens for route in self.routes.open_routes), default=0)

    def add(self, session: SessionState, now: float) -> Lost | None:
        """Queue a prepared session for its route; Lost at once when that route is no more."""
        assert session.key.session not in self._sessions, f"{session.key} is scheduled already"
        self._waiting.forget(session.key.session)
        if not self.routes.is_usable(session.route) or session.num_kv_tokens > session.route.kv_capacity_tokens:
            return Lost(session, StageError(f"route {session.route} is no more").to_failure())
        self._sessions[session.key.session] = session
        self._waiting.add(session, now)
        return None

    def release(self, session: str, *, is_finished: bool = False) -> None:
        """Let go of a session that is finished or not wanted any more; its KV is closed with the next envelope.

        That of the beginning of one that is finished may be kept.
        """
        self._waiting.forget(session)
        if state := self._sessions.get(session):
            self.kv_steps.learn(len(state.generated))
            self._remove(state)
            if is_finished and self.routes.is_open(state.route):
                self.kept.keep(state, self.routes.lane(state.route).prefixes)

    def take_resumed(self) -> list[Lost]:
        """Return sessions that were preempted and have room again: they are the caller's, to be prepared and added."""
        failure = KVCapacityError("older sessions needed its KV").to_failure()
        resumed = self._waiting.take_resumed()
        return [Lost(self._sessions.pop(each.key.session), failure, is_preempted=True) for each in resumed]

    @property
    def num_waiting(self) -> int:
        """Sessions that are prepared, or were preempted, and wait for room."""
        return len(self._waiting)

    def first_waiting(self, is_batch: bool) -> float:
        """Return the tag of the first batch job, or of the first other one, that is prepared and waits for room."""
        return next((each.turn.tag for each in self._waiting if each.turn.is_batch == is_batch), math.inf)

    @property
    def num_running(self) -> int:
        """Sessions that hold KV."""
        return len(self._sessions) - len(self._waiting)

    @property
    def num_unopened(self) -> int:
        """Sessions that are prepared and of which nothing was sent yet, whether they hold KV or wait for it."""
        return len(self._waiting) + sum(lane.num_unopened for lane in self.routes.lanes)

    # --- steps ------------------------------------------------------------------------------------------------------

    def plan(self, now: float) -> list[PlannedBatch]:
        """Return the microbatches to send now; call again after every change."""
        self._waiting.admit(now, self.growth.grow(now))
        planned = self.batches.plan(now, is_full=len(self._waiting) > 0)
        if self.routes.has_spare_lanes:
            self.routes.tidy([session.route for session in self._waiting])
        return planned

    def complete(self, result: MicrobatchResult, now: float) -> Outcome:
        """Take in a microbatch's answer. Sessions with a new token are ready for the next step when this returns."""
        microbatch = self.batches.take_back(result, now)
        if microbatch is None:
            return Outcome()
        self.ledger.settle(microbatch.closes, workers_passed(microbatch, result))
        outcome = Outcome(microbatch, failure=result.failure)
        if result.failure is not None:
            suspects = suspects_of(microbatch, result.failure, result.worker)
            outcome.lost.extend(self._lose(microbatch.segments, result.failure, suspects, is_blamed=True))
        elif microbatch.segments:
            self._take_in(microbatch, result, outcome)
        return outcome

    def fail_microbatch(self, number: int, failure: Failure) -> list[Lost]:
        """Give up a microbatch that was never sent, or whose answer cannot come; nobody is to blame."""
        microbatch = self.batches.forget(number)
        return self._lose(microbatch.segments, failure) if microbatch else []

    def _take_in(self, microbatch: PlannedBatch, result: MicrobatchResult, outcome: Outcome) -> None:
        answer, make_ready = BatchAnswer(result), self.routes.lane(microbatch.route).make_ready
        answer_to, sessions, sampled = answer.to, self._sessions, outcome.sampled
        for segment in microbatch.segments:
            session = segment.session
            if sessions.get(session.key.session) is not session:
                continue  # released meanwhile
            said = answer_to(segment)
            if isinstance(said, Failure):
                suspects = suspects_of(microbatch, said, answer.worker_of(segment))
                outcome.lost.extend(self._lose([segment], said, suspects, is_blamed=True))
                continue
            session.num_computed_tokens = segment.start + segment.count
            if segment.drafts:
                self._take_back(segment, len(segment.drafts) + 1 - len(said))
            if said:
                for token in said:
                    session.generated.append(token.token_id)
                if session.is_repeat:
                    session.is_repeat = session.is_alone = False
                    outcome.repeated.append(session)
                sampled.append(Sampled(session, said))
            make_ready(session)

    def _take_back(self, segment: PlannedSegment, num_wrong: int) -> None:
        """Let the session go on behind the last draft that is right: stages write over the others."""
        segment.session.num_computed_tokens -= num_wrong
        self.batches.drafting.observe(segment, len(segment.drafts) - num_wrong)

    # --- losses -----------------------------------------------------------------------------------------------------

    def leave_stragglers(self, now: float) -> list[Lost]:
        """Lose those sessions on stragglers that would end earlier on another route, and for which that has room."""
        if len(self.routes.open_routes) < 2:
            return []
        loads = self._loads(now)
        slow = [load for load in loads if load.route in stragglers(loads)]
        fast = [load for load in loads if load not in slow]
        lost: list[Lost] = []
        for load in slow:
            if not self.routes.lane(load.route).num_to_measure:
                failure = RouteLostError(f"{load.route} is slow: the session goes on elsewhere").to_failure()
                there = [session for session in self._sessions.values() if session.route == load.route]
                moved = worth_moving(there, load, fast, self.batches.step_s)
                lost += [Lost(session, failure) for session in moved]
        for each in lost:
            self._remove(each.session)
        return lost

    def _lose(
        self,
        segments: Iterable[PlannedSegment],
        failure: Failure,
        suspects: tuple[str, ...] = (),
        *,
        is_blamed: bool = False,
    ) -> list[Lost]:
        lost = []
        for segment in segments:
            session = segment.session
            if self._sessions.get(session.key.session) is session:
                self._remove(session)
                self.kept.distrust(session.prefix)
                lost.append(Lost(session, failure, is_blamed, suspects))
        return lost

    def _lose_lanes(self, lanes: list[Lane], failure: Failure) -> list[Lost]:
        """Lose every session on these lanes.

        To blame are those in flight; but if one of them was in flight by itself, since it was suspected before, only
        that one is.
        """
        self.kept.tidy(self.routes.open_routes)
        in_flight = self.batches.forget_lanes(lanes)
        suspects = [microbatch for microbatch in in_flight if microbatch.is_alone] or in_flight
        blamed = {segment.session.key for microbatch in suspects for segment in microbatch.segments}
        ended = {lane.route.key for lane in lanes}
        sessions = [session for session in self._sessions.values() if session.route.key in ended]
        for session in sessions:
            self._remove(session)
        return [Lost(session, failure, session.key in blamed) for session in sessions]

    def _remove(self, session: SessionState) -> None:
        del self._sessions[session.key.session]
        was_running = [lane.remove(session.key) for lane in self.routes.lanes]
        if not any(was_running):
            self._waiting.remove(session)
        self.ledger.close(session.key, session.route)
