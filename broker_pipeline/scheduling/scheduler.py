"""Decides what every stage computes next. Synchronous and pure: no I/O, no clock, no tensors on a device.

    assign ──► (the vision worker prepares) ──► add ──► plan ──► complete ──┬──► plan ──► …
                                                                            ├──► release   finished, or not wanted
                                                                            └──► Lost      needs a new attempt

The caller passes the time, sends what `plan` returns, hands every answer to `complete`, and tells what happens to
workers (`join`, `drain`, `suspend`, `leave`). A session that the scheduler returns as `Lost` is the caller's again: it
comes back by `add` as a new attempt, with all tokens that it had. That replay is the only way of recovery, whatever
was lost and however.

The idea of scheduling by tokens not computed yet, in place of prefill and decode phases, is vLLM v1's.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from broker_pipeline.errors import Failure, MalformedEnvelopeError, StageError
from broker_pipeline.messages import MicrobatchResult, SampledToken
from broker_pipeline.scheduling.claims import Claims
from broker_pipeline.scheduling.flights import Flights
from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.microbatch import Lost, Microbatch, Outcome, PlannedSegment, Sampled
from broker_pipeline.scheduling.route_table import RouteTable
from broker_pipeline.scheduling.routes import Route, StageWorker
from broker_pipeline.scheduling.session_state import SessionState
from broker_pipeline.scheduling.step_cost import StepCost

_MAX_CLOSES = 1024  # in one envelope; more wait for the next
_PATIENCE = 4.0  # a step may take this many times its estimate before it is late


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What the scheduler keeps to. Times in seconds."""

    max_sessions: int = 512
    """Sessions that hold KV on one route at a time."""
    max_batch_tokens: int = 8192
    """Tokens of one microbatch; a route whose workers take fewer gets fewer."""
    overtake_s: float = 2.0
    """How long shorter sessions may pass by one for which there is no room."""
    deadline_s: float = 30.0
    """How long a microbatch may take beyond what is expected."""
    first_deadline_s: float = 180.0
    """The same for a route with a stage that has not computed yet: it may have kernels to build."""
    probe_deadline_s: float = 5.0
    """How long a message that only asks for an answer is remembered."""
    suspect_s: float = 2.0
    """How late a microbatch may be before another is sent after it to see whether it was lost."""


class Scheduler:
    """Sessions, routes, KV and microbatches of one pipeline in one epoch."""

    def __init__(self, num_layers: int, limits: SchedulerLimits | None = None) -> None:
        self.limits = limits or SchedulerLimits()
        self.ledger = KVLedger()
        self.routes = RouteTable(num_layers)
        self._sessions: dict[str, SessionState] = {}
        self._waiting: list[SessionState] = []
        self._claims = Claims()
        self._in_flight = Flights()
        self._costs: dict[str, StepCost] = {}
        self._numbers = itertools.count(1)

    # --- workers ----------------------------------------------------------------------------------------------------

    def join(self, worker: StageWorker) -> None:
        """Use a worker: a new one, or a suspended one that answered again."""
        self.ledger.add_worker(worker)
        self._costs.setdefault(worker.key, StepCost())
        self.routes.join(worker)

    def drain(self, key: str) -> None:
        """Let a worker finish its sessions and give it no new ones."""
        self.routes.drain(key)

    def suspend(self, key: str, failure: Failure) -> list[Lost]:
        """Stop using a worker that does not answer. Its KV counts as held until it has answered for it."""
        return self._lose_lanes(self.routes.suspend(key), failure)

    def leave(self, key: str, failure: Failure) -> list[Lost]:
        """Forget a worker whose process has ended."""
        lost = self._lose_lanes(self.routes.leave(key), failure)
        self.ledger.remove_worker(key)
        self._costs.pop(key, None)
        return lost

    def probe(self, key: str, now: float) -> Microbatch | None:
        """Return a message that asks a suspended worker for nothing but closes and an answer."""
        worker = self.routes.find_suspended(key)
        return self._empty_microbatch(Route((worker,)), now, self.limits.probe_deadline_s) if worker else None

    # --- sessions ---------------------------------------------------------------------------------------------------

    def assign(self, session: str, num_tokens: int) -> Route | None:
        """Choose the route with most room for a session to be prepared, of about `num_tokens` in all.

        None when no open route can ever hold that many. The choice counts against the route's room until `add` or
        `release`.
        """
        self._claims.drop(session)
        routes = [route for route in self.routes.open_routes if route.kv_capacity_tokens >= num_tokens]
        if not routes:
            return None
        best = max(routes, key=lambda route: (self._room(route), -len(self.routes.lane(route).running)))
        self._claims.put(session, best, num_tokens)
        return best

    def room(self) -> int:
        """Return the KV tokens of the emptiest route that nobody has, waits for or is being prepared for."""
        return max((self._room(route) for route in self.routes.open_routes), default=0)

    def longest_session(self) -> int:
        """Return the tokens of the longest session that any open route can hold."""
        return max((route.kv_capacity_tokens for route in self.routes.open_routes), default=0)

    def add(self, session: SessionState, now: float) -> Lost | None:
        """Queue a prepared session for its route; Lost at once when that route is no more."""
        assert session.key.session not in self._sessions, f"{session.key} is scheduled already"
        self._claims.drop(session.key.session)
        if not self.routes.is_usable(session.route) or session.num_kv_tokens > session.route.kv_capacity_tokens:
            return Lost(session, StageError(f"route {session.route} is no more").to_failure())
        session.waiting_since = now
        self.routes.lane(session.route)
        self._sessions[session.key.session] = session
        self._claims.put(session.key.session, session.route, session.num_kv_tokens)
        bisect.insort(self._waiting, session, key=lambda waiting: waiting.order)
        return None

    def release(self, session: str) -> None:
        """Let go of a session that is finished or not wanted any more; its KV is closed with the next envelope."""
        self._claims.drop(session)
        if state := self._sessions.get(session):
            self._remove(state)

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    @property
    def num_waiting(self) -> int:
        """Sessions that are prepared and wait for room."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sessions that hold KV."""
        return len(self._sessions) - len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Envelopes that have no answer yet."""
        return len(self._in_flight)

    # --- steps ------------------------------------------------------------------------------------------------------

    def plan(self, now: float) -> list[Microbatch]:
        """Return the microbatches to send now; call again after every change."""
        self._admit(now)
        planned = [microbatch for lane in self.routes.lanes for microbatch in self._deal(lane, now)]
        planned += self._flush(now)
        if self.routes.has_spare_lanes:
            self.routes.tidy([session.route for session in self._waiting])
        return planned

    def complete(self, result: MicrobatchResult, now: float) -> Outcome:
        """Take in a microbatch's answer. Sessions with a new token are ready for the next step when this returns."""
        microbatch = self._forget(result.microbatch)
        if microbatch is None:
            return Outcome()
        overtaken = self._in_flight.end_trail(microbatch.number)
        self._settle(microbatch, result)
        self._observe(microbatch, result, now)
        outcome = Outcome(microbatch, overtaken if overtaken is not None and overtaken in self._in_flight else None)
        if result.failure is not None:
            outcome.lost.extend(self._lose(microbatch.segments, result.failure, is_blamed=True))
        elif microbatch.segments:
            self._take_in(microbatch, result, outcome)
        return outcome

    def fail_microbatch(self, number: int, failure: Failure) -> list[Lost]:
        """Give up a microbatch that was never sent, or whose answer cannot come; nobody is to blame."""
        microbatch = self._forget(number)
        return self._lose(microbatch.segments, failure) if microbatch else []

    def trails(self, now: float) -> list[Microbatch]:
        """Return an empty microbatch to send after each that is late, along the same route.

        Envelopes along one route keep about their order, so that one which is overtaken was lost; the outcome of the
        trail says so (`overtaken`). A stage that just takes long holds up the trail as well.
        """
        late = self._in_flight.without_trail(now)
        planned = [self._empty_microbatch(m.route, now, self.limits.probe_deadline_s) for m in late]
        for trail, followed in zip(planned, late, strict=True):
            self._in_flight.add_trail(trail, followed)
        return planned

    def expired(self, now: float) -> list[Microbatch]:
        """Return microbatches past their deadline; probes and trails among them are forgotten at once.

        The caller suspends the workers of the others, which loses their sessions.
        """
        late = self._in_flight.late(now)
        for microbatch in late:
            is_trail = self._in_flight.end_trail(microbatch.number) is not None
            if is_trail or not self.routes.is_usable(microbatch.route):
                self._forget(microbatch.number)
        return [microbatch for microbatch in late if microbatch.number in self._in_flight]

    def next_deadline(self) -> float | None:
        """Return the time of the earliest deadline."""
        return self._in_flight.next_deadline()

    # --- admission --------------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """Give KV to waiting sessions, the oldest job first.

        One that has waited for `overtake_s` without there being room keeps its workers' room from all younger ones.
        """
        blocked: set[str] = set()
        self._waiting = [session for session in self._waiting if not self._is_admitted(session, blocked, now)]

    def _is_admitted(self, session: SessionState, blocked: set[str], now: float) -> bool:
        keys, lane = session.route.key, self.routes.lane(session.route)
        if len(lane.running) >= self.limits.max_sessions or not blocked.isdisjoint(keys):
            return False
        if self.ledger.reserve(session.key, session.num_kv_tokens, session.route):
            self._claims.drop(session.key.session)
            lane.start(session)
            return True
        if now - session.waiting_since >= self.limits.overtake_s:
            blocked.update(keys)
        return False

    def _room(self, route: Route) -> int:
        return self._claims.room(route, self.ledger)

    # --- microbatches -----------------------------------------------------------------------------------------------

    def _deal(self, lane: Lane, now: float) -> Iterable[Microbatch]:
        stages = [self._costs[key] for key in lane.route.key]
        while deal := lane.deal(stages, self.limits.max_batch_tokens):
            segments = lane.take(deal)
            if not segments:
                return
            yield self._send(lane, segments, now)

    def _send(self, lane: Lane, segments: tuple[PlannedSegment, ...], now: float) -> Microbatch:
        number = next(self._numbers)
        closes = self.ledger.pending_closes(lane.route, _MAX_CLOSES)
        num_tokens = sum(segment.count for segment in segments)
        expected_s = self._expected_s(lane, num_tokens)
        is_first = not all(self._costs[key].is_known for key in lane.route.key)
        allowed_s = max(self.limits.first_deadline_s if is_first else 0.0, self.limits.deadline_s + expected_s)
        suspect_at = now + self.limits.suspect_s + expected_s
        microbatch = Microbatch(number, lane.route, segments, closes, now, now + allowed_s, suspect_at, num_tokens)
        for segment in segments:
            segment.session.in_flight = number
            segment.session.is_open = True
        lane.in_flight[number] = microbatch
        self._in_flight.add(microbatch)
        return microbatch

    def _expected_s(self, lane: Lane, num_tokens: int) -> float:
        """Seconds after which an answer is late; what is in flight already comes first."""
        costs = [self._costs[key] for key in lane.route.key]
        return _PATIENCE * sum(cost.estimate(num_tokens) for cost in costs) * (1 + len(lane.in_flight))

    def _flush(self, now: float) -> Iterable[Microbatch]:
        """Tell idle workers what to close; busy ones hear of it with the next microbatch."""
        busy = {key for microbatch in self._in_flight for key in microbatch.route.key}
        for worker in self.routes.usable:
            if worker.key not in busy and self.ledger.has_pending_closes(worker.key):
                yield self._empty_microbatch(Route((worker,)), now, self.limits.first_deadline_s)

    def _empty_microbatch(self, route: Route, now: float, allowed_s: float) -> Microbatch:
        closes = self.ledger.pending_closes(route, _MAX_CLOSES)
        microbatch = Microbatch(next(self._numbers), route, (), closes, now, now + allowed_s)
        self._in_flight.add(microbatch)
        return microbatch

    # --- answers ----------------------------------------------------------------------------------------------------

    def _forget(self, number: int) -> Microbatch | None:
        microbatch = self._in_flight.pop(number)
        if microbatch is not None:
            for lane in self.routes.lanes:
                lane.in_flight.pop(number, None)
        return microbatch

    def _settle(self, microbatch: Microbatch, result: MicrobatchResult) -> None:
        """Free the closed sessions on the stages that the envelope has passed: up to the one that answered."""
        names = [worker.name for worker in microbatch.route.workers]
        num_passed = names.index(result.worker) + 1 if result.worker in names else 0
        if result.failure is not None:
            num_passed -= 1  # the one that failed may not have got as far as its closes
        self.ledger.settle(microbatch.closes, microbatch.route.workers[: max(0, num_passed)])

    def _observe(self, microbatch: Microbatch, result: MicrobatchResult, now: float) -> None:
        if not microbatch.segments or result.failure is not None or result.failures:
            return
        keys = {worker.name: worker.key for worker in microbatch.route.workers}
        for timing in result.timings:
            if cost := self._costs.get(keys.get(timing.worker, "")):
                cost.observe(microbatch.num_tokens, timing.compute_s)
        on_stages = sum(timing.queue_s + timing.compute_s for timing in result.timings)
        if self.routes.is_usable(microbatch.route):
            self.routes.lane(microbatch.route).observe_outside(now - microbatch.sent_at - on_stages)

    def _take_in(self, microbatch: Microbatch, result: MicrobatchResult, outcome: Outcome) -> None:
        tokens = {token.session: token for token in result.tokens}
        failures = {failed.session: failed for failed in result.failures}
        lane = self.routes.lane(microbatch.route)
        for segment in microbatch.segments:
            session = segment.session
            key = session.key
            if self._sessions.get(key.session) is not session:
                continue  # released meanwhile
            token = tokens.get(key.session) if segment.wants_token else None
            failed = failures.get(key.session) if failures else None
            if failed is not None and failed.attempt == key.attempt:
                outcome.lost.extend(self._lose([segment], failed.failure, is_blamed=True))
                continue
            if segment.wants_token and not _follows(token, segment):
                error = MalformedEnvelopeError(f"no token for position {segment.stop} came back")
                outcome.lost.extend(self._lose([segment], error.to_failure(), is_blamed=True))
                continue
            session.in_flight = None
            session.num_computed_tokens = segment.stop
            if token is not None:
                session.generated.append(token.token_id)
                session.is_alone = False
                outcome.sampled.append(Sampled(session, token))
            lane.make_ready(session)

    # --- losses -----------------------------------------------------------------------------------------------------

    def _lose(self, segments: Iterable[PlannedSegment], failure: Failure, *, is_blamed: bool = False) -> list[Lost]:
        lost = []
        for segment in segments:
            session = segment.session
            if self._sessions.get(session.key.session) is session:
                self._remove(session)
                lost.append(Lost(session, failure, is_blamed))
        return lost

    def _lose_lanes(self, lanes: list[Lane], failure: Failure) -> list[Lost]:
        """Lose every session on these lanes.

        To blame are those in flight; but if one of them was in flight by itself, since it was suspected before, only
        that one is.
        """
        in_flight = [microbatch for lane in lanes for microbatch in lane.in_flight.values()]
        suspects = [microbatch for microbatch in in_flight if microbatch.is_alone] or in_flight
        blamed = {segment.session.key for microbatch in suspects for segment in microbatch.segments}
        for microbatch in in_flight:
            self._in_flight.pop(microbatch.number)
        self._in_flight.tidy_trails()
        ended = {lane.route.key for lane in lanes}
        sessions = [session for session in self._sessions.values() if session.route.key in ended]
        for session in sessions:
            self._remove(session)
        return [Lost(session, failure, session.key in blamed) for session in sessions]

    def _remove(self, session: SessionState) -> None:
        del self._sessions[session.key.session]
        self._claims.drop(session.key.session)
        was_running = [lane.remove(session.key) for lane in self.routes.lanes]
        if not any(was_running) and session in self._waiting:
            self._waiting.remove(session)
        self.ledger.close(session.key, session.route)


def _follows(token: SampledToken | None, segment: PlannedSegment) -> bool:
    return token is not None and token.position == segment.stop and token.attempt == segment.session.key.attempt
