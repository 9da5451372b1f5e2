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
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from broker_pipeline.errors import Failure, MalformedEnvelopeError, StageError
from broker_pipeline.messages import MicrobatchResult
from broker_pipeline.scheduling.kv_ledger import KVLedger, SessionKey
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

    max_sessions: int = 256
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
        self._pledges: dict[str, tuple[Route, int]] = {}
        self._in_flight: dict[int, Microbatch] = {}
        self._trails: dict[int, int] = {}
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
        self._pledges.pop(session, None)
        routes = [route for route in self.routes.open_routes if route.kv_capacity_tokens >= num_tokens]
        if not routes:
            return None
        claims = self._claims()
        best = max(routes, key=lambda route: (self._room(route, claims), -len(self.routes.lane(route).running)))
        self._pledges[session] = (best, num_tokens)
        return best

    def room(self) -> int:
        """Return the KV tokens of the emptiest route that nobody has, waits for or is being prepared for."""
        claims = self._claims()
        return max((self._room(route, claims) for route in self.routes.open_routes), default=0)

    def longest_session(self) -> int:
        """Return the tokens of the longest session that any open route can hold."""
        return max((route.kv_capacity_tokens for route in self.routes.open_routes), default=0)

    def add(self, session: SessionState, now: float) -> Lost | None:
        """Queue a prepared session for its route; Lost at once when that route is no more."""
        assert session.key.session not in self._sessions, f"{session.key} is scheduled already"
        self._pledges.pop(session.key.session, None)
        if not self.routes.is_usable(session.route) or session.num_kv_tokens > session.route.kv_capacity_tokens:
            return Lost(session, StageError(f"route {session.route} is no more").to_failure())
        session.waiting_since = now
        self.routes.lane(session.route)
        self._sessions[session.key.session] = session
        bisect.insort(self._waiting, session, key=lambda waiting: waiting.order)
        return None

    def release(self, session: str) -> None:
        """Let go of a session that is finished or not wanted any more; its KV is closed with the next envelope."""
        self._pledges.pop(session, None)
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
        self.routes.tidy([session.route for session in self._waiting])
        return planned

    def complete(self, result: MicrobatchResult, now: float) -> Outcome:
        """Take in a microbatch's answer. Sessions with a new token are ready for the next step when this returns."""
        microbatch = self._forget(result.microbatch)
        if microbatch is None:
            return Outcome()
        overtaken = self._trails.pop(microbatch.number, None)
        self._settle(microbatch, result)
        self._observe(microbatch, result, now)
        outcome = Outcome(microbatch, overtaken if overtaken in self._in_flight else None)
        if result.failure is not None:
            outcome.lost.extend(self._lose(microbatch.segments, result.failure, is_blamed=True))
        else:
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
        trailed = set(self._trails.values())
        late = [m for m in self._in_flight.values() if m.suspect_at <= now and m.number not in trailed]
        planned = [self._empty_microbatch(m.route, now, self.limits.probe_deadline_s) for m in late]
        self._trails |= {trail.number: m.number for trail, m in zip(planned, late, strict=True)}
        return planned

    def expired(self, now: float) -> list[Microbatch]:
        """Return microbatches past their deadline; probes and trails among them are forgotten at once.

        The caller suspends the workers of the others, which loses their sessions.
        """
        late = [microbatch for microbatch in self._in_flight.values() if microbatch.deadline <= now]
        for microbatch in late:
            is_trail = self._trails.pop(microbatch.number, None) is not None
            if is_trail or not self.routes.is_usable(microbatch.route):
                self._forget(microbatch.number)
        return [microbatch for microbatch in late if microbatch.number in self._in_flight]

    def next_deadline(self) -> float | None:
        """Return the time of the earliest deadline."""
        return min((microbatch.deadline for microbatch in self._in_flight.values()), default=None)

    # --- admission --------------------------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """Give KV to waiting sessions, the oldest job first.

        One that has waited for `overtake_s` without there being room keeps its workers' room from all younger ones.
        """
        blocked: set[str] = set()
        for session in list(self._waiting):
            keys = session.route.key
            if blocked.intersection(keys) or len(self.routes.lane(session.route).running) >= self.limits.max_sessions:
                continue
            if self.ledger.reserve(session.key, session.num_kv_tokens, session.route):
                self._waiting.remove(session)
                self.routes.lane(session.route).start(session)
            elif now - session.waiting_since >= self.limits.overtake_s:
                blocked.update(keys)

    def _claims(self) -> Counter[str]:
        """Tokens by worker that waiting sessions and those being prepared will take."""
        claims: Counter[str] = Counter()
        waiting = [(session.route, session.num_kv_tokens) for session in self._waiting]
        for route, num_tokens in (*waiting, *self._pledges.values()):
            for key in route.key:
                claims[key] += num_tokens
        return claims

    def _room(self, route: Route, claims: Counter[str]) -> int:
        return min(
            worker.kv_capacity_tokens - self.ledger.used_tokens(worker.key) - claims[worker.key]
            for worker in route.workers
        )

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
        expected_s = self._expected_s(lane, sum(segment.count for segment in segments))
        is_first = not all(self._costs[key].is_known for key in lane.route.key)
        allowed_s = max(self.limits.first_deadline_s if is_first else 0.0, self.limits.deadline_s + expected_s)
        suspect_at = now + self.limits.suspect_s + expected_s
        microbatch = Microbatch(number, lane.route, segments, closes, now, now + allowed_s, suspect_at)
        for segment in segments:
            segment.session.in_flight = number
            segment.session.is_open = True
        lane.in_flight[number] = self._in_flight[number] = microbatch
        return microbatch

    def _expected_s(self, lane: Lane, num_tokens: int) -> float:
        """Seconds after which an answer is late; what is in flight already comes first."""
        costs = [self._costs[key] for key in lane.route.key]
        return _PATIENCE * sum(cost.estimate(num_tokens) for cost in costs) * (1 + len(lane.in_flight))

    def _flush(self, now: float) -> Iterable[Microbatch]:
        """Tell idle workers what to close; busy ones hear of it with the next microbatch."""
        busy = {key for microbatch in self._in_flight.values() for key in microbatch.route.key}
        for worker in self.routes.usable:
            if worker.key not in busy and self.ledger.has_pending_closes(worker.key):
                yield self._empty_microbatch(Route((worker,)), now, self.limits.first_deadline_s)

    def _empty_microbatch(self, route: Route, now: float, allowed_s: float) -> Microbatch:
        closes = self.ledger.pending_closes(route, _MAX_CLOSES)
        microbatch = Microbatch(next(self._numbers), route, (), closes, now, now + allowed_s)
        self._in_flight[microbatch.number] = microbatch
        return microbatch

    # --- answers ----------------------------------------------------------------------------------------------------

    def _forget(self, number: int) -> Microbatch | None:
        microbatch = self._in_flight.pop(number, None)
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
        tokens = {SessionKey(token.session, token.attempt): token for token in result.tokens}
        failures = {SessionKey(failed.session, failed.attempt): failed.failure for failed in result.failures}
        for segment in microbatch.segments:
            session = segment.session
            if self._sessions.get(session.key.session) is not session:
                continue  # released meanwhile
            token = tokens.get(session.key)
            failure = failures.get(session.key)
            if failure is None and segment.wants_token and (token is None or token.position != segment.stop):
                failure = MalformedEnvelopeError(f"no token for position {segment.stop} came back").to_failure()
            if failure is not None:
                outcome.lost.extend(self._lose([segment], failure, is_blamed=True))
                continue
            session.in_flight = None
            session.num_computed_tokens = segment.stop
            if segment.wants_token and token is not None:
                session.generated.append(token.token_id)
                session.is_alone = False
                outcome.sampled.append(Sampled(session, token))
            self.routes.lane(session.route).make_ready(session)

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
            self._in_flight.pop(microbatch.number, None)
        self._forget_trails()
        ended = {lane.route.key for lane in lanes}
        sessions = [session for session in self._sessions.values() if session.route.key in ended]
        for session in sessions:
            self._remove(session)
        return [Lost(session, failure, session.key in blamed) for session in sessions]

    def _forget_trails(self) -> None:
        """Expect no answer to trails of microbatches that are lost: who waits for one is not told what to close."""
        for trail, number in list(self._trails.items()):
            if number not in self._in_flight:
                del self._trails[trail]
                self._in_flight.pop(trail, None)

    def _remove(self, session: SessionState) -> None:
        del self._sessions[session.key.session]
        if session in self._waiting:
            self._waiting.remove(session)
        for lane in self.routes.lanes:
            lane.remove(session.key)
        self.ledger.close(session.key, session.route)
