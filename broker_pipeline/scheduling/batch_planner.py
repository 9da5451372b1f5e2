"""Turns what lanes have ready into microbatches, and keeps those that are under way. Pure.

    lane ──budget──► segments ──┐
    ledger ────────► closes ────┼──► PlannedBatch: number, deadline ──► in flight ──► forgotten: answered, or given up
    costs ─────────► patience ──┘

A microbatch without segments carries closes to an idle worker, asks a suspended worker for an answer, or is a probe:
it follows a late one along the same route, so that one which it overtakes was lost.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.scheduling.answers import learn_costs, outside_s
from broker_pipeline.scheduling.in_flight_table import InFlightTable
from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.policies.drafting import Drafting
from broker_pipeline.scheduling.policies.kept_prefixes import KeptPrefixes
from broker_pipeline.scheduling.route_table import RouteTable
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import Prefix
from broker_pipeline.scheduling.step_cost import StepCost

_MAX_CLOSES = 1024  # in one envelope; more wait for the next
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0  # before closes that were refused are sent again
_PATIENCE = 4.0  # a step may take this many times its estimate before it is late


class _Pause(NamedTuple):
    until: float
    pause_s: float


class BatchPlanner:
    """The microbatches of one scheduler."""

    def __init__(self, limits: SchedulerLimits, ledger: KVLedger, routes: RouteTable, kept: KeptPrefixes) -> None:
        self._limits = limits
        self._kept = kept
        self._ledger = ledger
        self._routes = routes
        self._in_flight = InFlightTable()
        self._costs: defaultdict[str, StepCost] = defaultdict(StepCost)
        self._asked: set[str] = set()
        self._close_pauses: dict[str, _Pause] = {}
        self._numbers = itertools.count(1)
        self.drafting = Drafting(limits.drafts)
        self.num_prompt_tokens = 0
        """Of all sessions that were sent."""
        self.num_copied_tokens = 0
        """Those of them whose KV was another session's."""

    def __len__(self) -> int:
        return len(self._in_flight)

    # --- out --------------------------------------------------------------------------------------------------------

    def ask(self, key: str) -> None:
        """Ask a suspended worker with the next plan for nothing but closes and an answer."""
        self._asked.add(key)

    def plan(self, now: float, *, is_full: bool = True) -> list[PlannedBatch]:
        """Return what is to be sent now; `is_full` says whether sessions wait for places on routes."""
        planned = [microbatch for lane in self._routes.lanes for microbatch in self._fill(lane, now, is_full=is_full)]
        planned += self._flush(now)
        asked, self._asked = self._asked, set()
        suspended = [worker for worker in self._routes.suspended if worker.key in asked]
        planned += [self._empty(Route((worker,)), now, self._limits.probe_deadline_s) for worker in suspended]
        return planned

    def late_probes(self, now: float) -> list[PlannedBatch]:
        """Return a probe to send after each microbatch that is late; a stage that just takes long holds it up too."""
        late = self._in_flight.without_probe(now)
        return [self._empty(each.route, now, self._limits.probe_deadline_s, follows=each) for each in late]

    def _fill(self, lane: Lane, now: float, *, is_full: bool) -> Iterator[PlannedBatch]:
        stages = [self._costs[key] for key in lane.route.key]
        num_free_places = 0 if is_full else max(0, self._limits.max_sessions - len(lane.running))
        max_tokens = min(self._limits.max_batch_tokens, lane.route.max_batch_tokens)
        while segments := lane.take(stages, self._limits.max_batch_tokens, num_free_places):
            segments = self.drafting.extended(segments, lane.route, max_tokens)
            microbatch = self._make(lane, segments, stages, now)
            lane.in_flight[microbatch.number] = microbatch
            self._note_opens(microbatch)
            self._in_flight.add(microbatch)
            yield microbatch

    def _make(
        self, lane: Lane, segments: tuple[PlannedSegment, ...], stages: list[StepCost], now: float
    ) -> PlannedBatch:
        """Those sent before it along the route come first, so that its answer may take so much longer."""
        limits = self._limits
        num_tokens = sum(segment.count for segment in segments)
        expected_s = self._patience_s(num_tokens, stages) * (1 + len(lane.in_flight))
        is_first = not all(stage.is_known for stage in stages)
        allowed_s = max(limits.first_deadline_s if is_first else 0.0, limits.deadline_s + expected_s)
        return PlannedBatch(
            number=next(self._numbers),
            route=lane.route,
            segments=segments,
            closes=self._ledger.pending_closes(lane.route, _MAX_CLOSES),
            sent_at=now,
            deadline=now + allowed_s,
            suspect_at=now + limits.suspect_s + expected_s,
            num_tokens=num_tokens,
        )

    def _patience_s(self, num_tokens: int, stages: list[StepCost]) -> float:
        """Return how long a step may take on all stages by what was measured.

        Beyond the largest step measured, cost in proportion is a guess, far too much where a step costs its weights
        whatever it holds: it makes nobody wait longer than for a first step, of which nothing is known either.
        """
        measured_s = _PATIENCE * sum(stage.estimate(min(num_tokens, stage.largest)) for stage in stages)
        guessed_s = _PATIENCE * sum(stage.estimate(num_tokens) for stage in stages)
        return max(measured_s, min(guessed_s, self._limits.first_deadline_s))

    def _flush(self, now: float) -> Iterator[PlannedBatch]:
        """Tell idle workers what to close; busy ones hear of it with the next microbatch."""
        busy = {key for microbatch in self._in_flight for key in microbatch.route.key}
        for worker in self._routes.usable:
            pause = self._close_pauses.get(worker.key)
            is_paused = pause is not None and now < pause.until
            if worker.key not in busy and not is_paused and self._ledger.has_pending_closes(worker.key):
                yield self._empty(Route((worker,)), now, self._limits.first_deadline_s)

    def _empty(
        self, route: Route, now: float, allowed_s: float, *, follows: PlannedBatch | None = None
    ) -> PlannedBatch:
        closes = self._ledger.pending_closes(route, _MAX_CLOSES)
        microbatch = PlannedBatch(next(self._numbers), route, (), closes, now, now + allowed_s)
        self._in_flight.add(microbatch, follows=follows)
        return microbatch

    # --- in ---------------------------------------------------------------------------------------------------------

    def take_back(self, result: MicrobatchResult, now: float) -> PlannedBatch | None:
        """Return the microbatch that this answers, and learn from its times; None when nobody waits for it."""
        self._in_flight.note_answer(result.microbatch, now)
        microbatch = self.forget(result.microbatch)
        if microbatch is not None and not microbatch.segments:
            self._in_flight.drop_before(microbatch)
            self._note_closes(microbatch, now, is_refused=result.failure is not None)
        elif microbatch is not None and result.failure is None and not result.failures:
            learn_costs(microbatch, result, self._costs)
            if self._routes.is_usable(microbatch.route):
                lane = self._routes.lane(microbatch.route)
                lane.observe_outside(outside_s(microbatch, result, now))
                lane.note_answer(microbatch.num_tokens, now)
        return microbatch

    def _note_closes(self, microbatch: PlannedBatch, now: float, *, is_refused: bool) -> None:
        """Tell workers that refuse closes of them after a while, and after twice that if they refuse again."""
        for key in microbatch.route.key:
            before = self._close_pauses.pop(key, _Pause(0.0, _FIRST_PAUSE_S / 2))
            if is_refused:
                pause_s = min(2 * before.pause_s, _LONGEST_PAUSE_S)
                self._close_pauses[key] = _Pause(now + pause_s, pause_s)

    @property
    def has_refused_closes(self) -> bool:
        """Whether closes wait for time to pass."""
        return bool(self._close_pauses)

    def step_s(self, route: Route, num_tokens: float) -> float | None:
        """Return the seconds of a route's slowest stage for `num_tokens`; None while one is unmeasured."""
        stages = [self._costs[key] for key in route.key]
        return max(stage.estimate(num_tokens) for stage in stages) if all(stage.is_known for stage in stages) else None

    def seen_step_s(self, route: Route, num_tokens: float) -> float | None:
        """Return the same of no more tokens than its stages have had at once: nothing beyond is guessed."""
        most = min(self._costs[key].largest for key in route.key)
        return self.step_s(route, min(num_tokens, most))

    def overtaken(self, now: float) -> list[PlannedBatch]:
        """Return what a probe has overtaken, long enough ago that it will not come any more."""
        return self._in_flight.overtaken(now - self._limits.grace_s)

    def expired(self, now: float) -> list[PlannedBatch]:
        """Return what is past its deadline; probes, and what went to workers not in use, are forgotten at once."""
        expired = []
        for microbatch in self._in_flight.late(now):
            if self._in_flight.is_probe(microbatch.number) or not self._routes.is_usable(microbatch.route):
                self.forget(microbatch.number)
            else:
                expired.append(microbatch)
        return expired

    def forget(self, number: int) -> PlannedBatch | None:
        """Wait for an answer no longer; None when nobody did."""
        microbatch = self._in_flight.pop(number)
        if microbatch is not None:
            self._let_go(microbatch)
            for lane in self._routes.lanes:
                lane.in_flight.pop(number, None)
        return microbatch

    def forget_lanes(self, lanes: Iterable[Lane]) -> list[PlannedBatch]:
        """Return what was in flight on lanes that are no more; nobody waits for it from now on."""
        in_flight = [microbatch for lane in lanes for microbatch in lane.in_flight.values()]
        for microbatch in in_flight:
            self._in_flight.pop(microbatch.number)
            self._let_go(microbatch)
        self._in_flight.drop_stale_probes()
        return in_flight

    def _note_opens(self, microbatch: PlannedBatch) -> None:
        for segment in microbatch.segments:
            if segment.opens:
                self.num_prompt_tokens += segment.session.num_prompt_tokens
                self.num_copied_tokens += segment.start
        for prefix in _prefixes(microbatch):
            self._ledger.hold(prefix.source)
            self._kept.use(prefix)

    def _let_go(self, microbatch: PlannedBatch) -> None:
        for prefix in _prefixes(microbatch):
            self._ledger.let_go(prefix.source)

    def forget_worker(self, key: str) -> None:
        """Forget what steps cost on a worker that is gone."""
        self._costs.pop(key, None)
        self._close_pauses.pop(key, None)


def _prefixes(microbatch: PlannedBatch) -> list[Prefix]:
    """Return what a microbatch has copied, one for each copy."""
    return [each.session.prefix for each in microbatch.segments if each.opens and each.session.prefix]
