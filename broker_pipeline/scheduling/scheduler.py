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

from collections.abc import Iterable

from broker_pipeline.errors import Failure, StageError
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.scheduling.admission_queue import AdmissionQueue
from broker_pipeline.scheduling.answers import Answers, learn_costs, outside_s, workers_passed
from broker_pipeline.scheduling.batch_builder import BatchBuilder
from broker_pipeline.scheduling.in_flight_table import InFlightTable
from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import Lost, Outcome, PlannedBatch, PlannedSegment, Sampled
from broker_pipeline.scheduling.route_table import RouteTable
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.session_state import SessionState
from broker_pipeline.scheduling.step_cost import StepCost

__all__ = ["Scheduler", "SchedulerLimits"]


class Scheduler:
    """Sessions, routes, KV and microbatches of one pipeline in one epoch."""

    def __init__(self, num_layers: int, limits: SchedulerLimits | None = None) -> None:
        self.limits = limits or SchedulerLimits()
        self.ledger = KVLedger()
        self.routes = RouteTable(num_layers)
        self._sessions: dict[str, SessionState] = {}
        self._waiting = AdmissionQueue(self.limits, self.ledger, self.routes)
        self._maker = BatchBuilder(self.limits, self.ledger)
        self._in_flight = InFlightTable()
        self._costs: dict[str, StepCost] = {}

    # --- workers ----------------------------------------------------------------------------------------------------

    def join(self, worker: StageInfo) -> None:
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

    def probe(self, key: str, now: float) -> PlannedBatch | None:
        """Return a message that asks a suspended worker for nothing but closes and an answer."""
        worker = self.routes.find_suspended(key)
        return self._empty_microbatch(Route((worker,)), now, self.limits.probe_deadline_s) if worker else None

    # --- sessions ---------------------------------------------------------------------------------------------------

    def assign(self, session: str, num_tokens: int) -> Route | None:
        """Choose the route with most room for a session to be prepared, of about `num_tokens` in all.

        None when no open route can ever hold that many. The choice counts against the route's room until `add` or
        `release`.
        """
        self._waiting.drop_tentative(session)
        routes = [route for route in self.routes.open_routes if route.kv_capacity_tokens >= num_tokens]
        if not routes:
            return None
        best = max(routes, key=lambda route: (self._waiting.room(route), -len(self.routes.lane(route).running)))
        self._waiting.reserve_tentatively(session, best, num_tokens)
        return best

    def room(self) -> int:
        """Return the KV tokens of the emptiest route that nobody has, waits for or is being prepared for."""
        return max((self._waiting.room(route) for route in self.routes.open_routes), default=0)

    def longest_session(self) -> int:
        """Return the tokens of the longest session that any open route can hold."""
        return max((route.kv_capacity_tokens for route in self.routes.open_routes), default=0)

    def add(self, session: SessionState, now: float) -> Lost | None:
        """Queue a prepared session for its route; Lost at once when that route is no more."""
        assert session.key.session not in self._sessions, f"{session.key} is scheduled already"
        self._waiting.drop_tentative(session.key.session)
        if not self.routes.is_usable(session.route) or session.num_kv_tokens > session.route.kv_capacity_tokens:
            return Lost(session, StageError(f"route {session.route} is no more").to_failure())
        self._sessions[session.key.session] = session
        self._waiting.add(session, now)
        return None

    def release(self, session: str) -> None:
        """Let go of a session that is finished or not wanted any more; its KV is closed with the next envelope."""
        self._waiting.drop_tentative(session)
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

    def plan(self, now: float) -> list[PlannedBatch]:
        """Return the microbatches to send now; call again after every change."""
        self._waiting.admit(now)
        planned = [microbatch for lane in self.routes.lanes for microbatch in self._fill(lane, now)]
        planned += self._flush(now)
        if self.routes.has_spare_lanes:
            self.routes.tidy([session.route for session in self._waiting])
        return planned

    def complete(self, result: MicrobatchResult, now: float) -> Outcome:
        """Take in a microbatch's answer. Sessions with a new token are ready for the next step when this returns."""
        microbatch = self._forget(result.microbatch)
        if microbatch is None:
            return Outcome()
        overtaken = self._in_flight.end_probe(microbatch.number)
        self.ledger.settle(microbatch.closes, workers_passed(microbatch, result))
        if microbatch.segments and result.failure is None and not result.failures:
            self._learn(microbatch, result, now)
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

    def late_probes(self, now: float) -> list[PlannedBatch]:
        """Return an empty microbatch to send after each that is late, along the same route.

        Envelopes along one route keep about their order, so that one which is overtaken was lost; the outcome of the
        probe says so (`overtaken`). A stage that just takes long holds up the probe as well.
        """
        late = self._in_flight.without_probe(now)
        planned = [self._empty_microbatch(m.route, now, self.limits.probe_deadline_s) for m in late]
        for probe, followed in zip(planned, late, strict=True):
            self._in_flight.add_probe(probe, followed)
        return planned

    def expired(self, now: float) -> list[PlannedBatch]:
        """Return microbatches past their deadline; probes and probes among them are forgotten at once.

        The caller suspends the workers of the others, which loses their sessions.
        """
        late = self._in_flight.late(now)
        for microbatch in late:
            is_late_probe = self._in_flight.end_probe(microbatch.number) is not None
            if is_late_probe or not self.routes.is_usable(microbatch.route):
                self._forget(microbatch.number)
        return [microbatch for microbatch in late if microbatch.number in self._in_flight]

    def next_deadline(self) -> float | None:
        """Return the time of the earliest deadline."""
        return self._in_flight.next_deadline()

    # --- microbatches -----------------------------------------------------------------------------------------------

    def _fill(self, lane: Lane, now: float) -> Iterable[PlannedBatch]:
        stages = [self._costs[key] for key in lane.route.key]
        while budget := lane.budget(stages, self.limits.max_batch_tokens):
            segments = lane.take(budget)
            if not segments:
                return
            yield self._send(lane, segments, stages, now)

    def _send(
        self, lane: Lane, segments: tuple[PlannedSegment, ...], stages: list[StepCost], now: float
    ) -> PlannedBatch:
        microbatch = self._maker.make(lane.route, segments, stages, len(lane.in_flight), now)
        for segment in segments:
            segment.session.in_flight = microbatch.number
            segment.session.is_open = True
        lane.in_flight[microbatch.number] = microbatch
        self._in_flight.add(microbatch)
        return microbatch

    def _flush(self, now: float) -> Iterable[PlannedBatch]:
        """Tell idle workers what to close; busy ones hear of it with the next microbatch."""
        busy = {key for microbatch in self._in_flight for key in microbatch.route.key}
        for worker in self.routes.usable:
            if worker.key not in busy and self.ledger.has_pending_closes(worker.key):
                yield self._empty_microbatch(Route((worker,)), now, self.limits.first_deadline_s)

    def _empty_microbatch(self, route: Route, now: float, allowed_s: float) -> PlannedBatch:
        microbatch = self._maker.make_empty(route, now, allowed_s)
        self._in_flight.add(microbatch)
        return microbatch

    # --- answers ----------------------------------------------------------------------------------------------------

    def _forget(self, number: int) -> PlannedBatch | None:
        microbatch = self._in_flight.pop(number)
        if microbatch is not None:
            for lane in self.routes.lanes:
                lane.in_flight.pop(number, None)
        return microbatch

    def _learn(self, microbatch: PlannedBatch, result: MicrobatchResult, now: float) -> None:
        learn_costs(microbatch, result, self._costs)
        if self.routes.is_usable(microbatch.route):
            self.routes.lane(microbatch.route).observe_outside(outside_s(microbatch, result, now))

    def _take_in(self, microbatch: PlannedBatch, result: MicrobatchResult, outcome: Outcome) -> None:
        answers, lane = Answers(result), self.routes.lane(microbatch.route)
        for segment in microbatch.segments:
            session = segment.session
            if self._sessions.get(session.key.session) is not session:
                continue  # released meanwhile
            answer = answers.to(segment)
            if isinstance(answer, Failure):
                outcome.lost.extend(self._lose([segment], answer, is_blamed=True))
                continue
            session.in_flight = None
            session.num_computed_tokens = segment.stop
            if answer is not None:
                session.generated.append(answer.token_id)
                session.is_alone = False
                outcome.sampled.append(Sampled(session, answer))
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
        self._in_flight.drop_stale_probes()
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
