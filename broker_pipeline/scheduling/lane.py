"""One route's sessions, and how the next microbatch is cut from them. Pure.

    ready (first in, first out)                       in flight
    ┌───┬───┬───┬───┬───┐   budget: about 1/D of all    ┌───────────┐
    │ a │ P │ b │ Q │ c │ ──sessions and tokens─────► │ a b c P   │ ──► back to the end of ready
    └───┴───┴───┴───┴───┘                             └───────────┘
      one token: a b c    prompts: P Q

Every microbatch takes along the sessions that have one token to compute, and then prompts up to its share of tokens:
a step costs its weights whatever it holds, so that one of prompts alone is one too many, and sessions that speak do
not stand still while many prompts come. Prompts get half of the tokens where both are more than fit; one of them at
least comes along, and more at the pace at which sessions end (`PromptPace`). Among equals whoever waits longest is
served first, so nobody starves; a session has at most one segment in flight. Prompts of interactive jobs go before
those of batch jobs, but for one of these after each `INTERACTIVE_PER_BATCH`. One whose beginning another session just
computes waits for that, and has it copied (`PrefixTable`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.policies.fair_shares import INTERACTIVE_PER_BATCH, num_before_batch
from broker_pipeline.scheduling.policies.prefixes import PrefixTable
from broker_pipeline.scheduling.policies.prompt_pace import PromptPace
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState
from broker_pipeline.scheduling.step_cost import StepCost, choose_num_microbatches, shared_devices

_OUTSIDE_WEIGHT = 0.1
_NOTABLE_SHARE = 8  # of the sessions: where more than one in so many has come or gone, the count is chosen anew
_NUM_TO_MEASURE = 8


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """How much one microbatch should hold: `num_sessions` and `num_tokens` are aims, `max_tokens` is a limit.

    `num_places` is its share of the sessions that could run.
    """

    num_sessions: int
    num_places: int
    num_tokens: int
    max_tokens: int


class Lane:
    """A route with the sessions that hold KV on it."""

    def __init__(self, route: Route) -> None:
        self.route = route
        self.running: dict[SessionKey, SessionState] = {}
        self.in_flight: dict[int, PlannedBatch] = {}
        self.num_unopened = 0
        """Sessions of which nothing was sent yet: their visual rows lie at the stages."""
        self.stalled: dict[SessionKey, SessionState] = {}
        """Sessions that have filled the KV that they have."""
        self._ready: dict[SessionKey, SessionState] = {}
        self._demands: dict[SessionKey, int] = {}
        self._num_demanded = 0
        """Sum of the demands: kept, so that nothing ever adds up all of them."""
        self._max_tokens = route.max_batch_tokens
        self._max_sessions = route.max_step_sessions
        self._outside_s = 0.0
        self._count = 0
        """Microbatches that should be in flight, as last chosen: for so many sessions, and good for so many more takes.
        """
        self._num_counted = 0
        self._num_takes = 0
        self._shared = shared_devices(route)
        self._pace = PromptPace()
        self.prefixes = PrefixTable(
            is_used=all(worker.copies_prefixes for worker in route.workers),
            keeps=all(worker.keeps_prefixes for worker in route.workers),
        )
        self._num_before_batch = INTERACTIVE_PER_BATCH
        """Interactive prompts that still go before one of a batch job."""
        self.usual_tokens = 0.0
        """Tokens of the microbatches answered lately."""
        self.answered_at = 0.0
        self.num_to_measure = _NUM_TO_MEASURE
        """Microbatches until what its steps cost is known well enough to be judged by."""

    def start(self, session: SessionState) -> None:
        """Take in a session whose KV is reserved."""
        self.running[session.key] = session
        self.prefixes.add(session)
        self.num_unopened += 1
        self.make_ready(session)

    def make_ready(self, session: SessionState) -> None:
        """Put a session whose segment was answered, or that has grown, at the end of the queue, if it has room."""
        key, num_tokens = session.key, session.num_uncomputed_tokens
        if session.num_computed_tokens + num_tokens > session.num_reserved_tokens:
            self.stalled[key] = session
            return
        if self.stalled:
            self.stalled.pop(key, None)
        self._ready[key] = session
        known = self._demands.get(key, 0)
        if num_tokens != known:  # a decoding session asks for one token, again and again
            num_tokens = min(num_tokens, self._max_tokens)
            self._num_demanded += num_tokens - known
            self._demands[key] = num_tokens

    def remove(self, key: SessionKey) -> bool:
        """Let go of a session, wherever it is; return whether it was here."""
        self._ready.pop(key, None)
        self.stalled.pop(key, None)
        self._num_demanded -= self._demands.pop(key, 0)
        session = self.running.pop(key, None)
        if session is None:
            return False
        self.prefixes.remove(session)
        self.num_unopened -= not session.is_open
        if session.generated:
            self._pace.observe(session.num_prompt_tokens, len(session.generated))
        return True

    def observe_outside(self, seconds: float) -> None:
        """Learn how long a microbatch is between stages and in the broker."""
        known = self._outside_s or seconds
        self._outside_s = known + _OUTSIDE_WEIGHT * (max(0.0, seconds) - known)

    def note_answer(self, num_tokens: int, now: float) -> None:
        """Note a microbatch that came back."""
        self.usual_tokens += _OUTSIDE_WEIGHT * (num_tokens - self.usual_tokens)
        self.answered_at = now
        self.num_to_measure -= self.num_to_measure > 0

    def measure_again(self) -> None:
        """Judge it by nothing that was long ago."""
        self.num_to_measure = _NUM_TO_MEASURE

    def take(
        self, stages: Sequence[StepCost], max_batch_tokens: int, num_free_places: int = 0
    ) -> tuple[PlannedSegment, ...]:
        """Take the next microbatch's segments; none when enough is in flight, or what is ready has to wait for a turn.

        `stages` are what steps cost on each of the route's workers; `num_free_places` more sessions could run.
        """
        budget = self._budget(stages, max_batch_tokens, num_free_places)
        segments = self._segments(budget) if budget else ()
        for segment in segments:
            session = segment.session
            del self._ready[session.key]
            session.has_grown = False
            if segment.opens:
                session.is_open = True
                self.num_unopened -= 1
                self._num_before_batch = num_before_batch(self._num_before_batch, is_batch=session.turn.is_batch)
        return segments

    def _budget(self, stages: Sequence[StepCost], max_batch_tokens: int, num_free_places: int) -> BatchBudget | None:
        if not self._ready:
            return None
        num_sessions, num_tokens = len(self.running), self._num_demanded
        num_places = num_sessions + num_free_places
        max_tokens = min(max_batch_tokens, self._max_tokens)
        if abs(num_sessions - self._num_counted) > self._num_counted // _NOTABLE_SHARE:
            self._choose_count(stages, max_tokens, num_places)
        if len(self.in_flight) >= self._count:
            return None
        if not self._num_takes:
            self._choose_count(stages, max_tokens, num_places)
        count = self._count
        if len(self.in_flight) >= count:
            return None
        self._num_takes -= 1
        return BatchBudget(
            num_sessions=min(math.ceil(num_sessions / count), self._max_sessions),
            num_places=min(math.ceil(num_places / count), self._max_sessions),
            num_tokens=math.ceil(num_tokens / count),
            max_tokens=max_tokens,
        )

    def _choose_count(self, stages: Sequence[StepCost], max_tokens: int, num_places: int) -> None:
        """Choose how many microbatches should be in flight: once a round of them, since it is looked up with each.

        What counts is what a round takes along: prompts come at their pace, however many tokens of them wait.
        """
        self._num_counted = len(self.running)
        num_tokens = min(self._num_demanded, self._num_counted + self._pace.num_tokens(num_places))
        self._num_takes = self._count = choose_num_microbatches(
            self._num_counted,
            num_tokens,
            stages,
            self._outside_s,
            self._shared,
            max_tokens=min(max_tokens, self._max_sessions * num_tokens / max(1, self._num_counted)),
            current=self._count,
        )

    def _segments(self, budget: BatchBudget) -> tuple[PlannedSegment, ...]:
        steps, prompts = self._candidates(budget)
        first = next(iter(steps or prompts), None)
        if first is not None and first.is_alone:
            return (_segment(first, budget.max_tokens),)
        if prompts:
            num_demanded = sum(self._demands[session.key] for session in prompts)
            del steps[max(1, budget.max_tokens - min(num_demanded, budget.max_tokens // 2)) :]
        taken = [_step(session) for session in steps[: budget.max_tokens]]
        num_tokens = len(taken)
        num_for_prompts = min(budget.num_tokens - num_tokens, max(1, self._pace.num_tokens(budget.num_places)))
        enough = min(num_tokens + num_for_prompts, budget.max_tokens)
        chunks: list[PlannedSegment] = []
        for session in prompts:
            if num_tokens >= enough:
                break
            if not session.is_open and not self.prefixes.begin(session):  # one that it waits for is taken by now
                continue
            chunks.append(_segment(session, budget.max_tokens - num_tokens))
            num_tokens += chunks[-1].count
        chunks.sort(key=_is_single)
        return (*chunks, *taken)  # a GPU computes the attention of chunks apart from that of single tokens

    def _candidates(self, budget: BatchBudget) -> tuple[list[SessionState], list[SessionState]]:
        """Return sessions with one token to compute and sessions with more, or just one that is to be alone."""
        steps: list[SessionState] = []
        prompts: dict[bool, list[SessionState]] = {False: [], True: []}
        num_demanded = {False: 0, True: 0}
        alone_in_flight = any(microbatch.is_alone for microbatch in self.in_flight.values())
        for key, session in self._ready.items():
            demand = self._demands[key]
            if session.is_alone:
                if not steps and not any(prompts.values()) and not alone_in_flight:
                    return ([session], []) if demand == 1 else ([], [session])
            elif demand == 1:
                if len(steps) < budget.num_sessions:
                    steps.append(session)
            elif num_demanded[is_batch := session.turn.is_batch] < budget.max_tokens:
                if not session.is_open and self.prefixes.waits(session):
                    continue
                prompts[is_batch].append(session)
                num_demanded[is_batch] += demand
        interactive, batch = prompts.values()
        num_first = 0 if self._num_before_batch else 1
        return steps, [*batch[:num_first], *interactive, *batch[num_first:]]


def _is_single(segment: PlannedSegment) -> bool:
    return segment.count == 1


def _step(session: SessionState) -> PlannedSegment:
    """Return the segment of a session that has just one token to compute."""
    start = session.num_computed_tokens
    assert start < session.num_reserved_tokens, f"{session.key} has outgrown its reservation"
    return PlannedSegment(session, start, 1, True, not session.is_open, _grows_to(session))


def _segment(session: SessionState, max_tokens: int) -> PlannedSegment:
    start, num_uncomputed = session.num_computed_tokens, session.num_uncomputed_tokens
    count = min(num_uncomputed, max_tokens)
    assert count > 0, f"{session.key} has nothing to compute"
    assert start + count <= session.num_reserved_tokens, f"{session.key} has outgrown its reservation"
    return PlannedSegment(session, start, count, count == num_uncomputed, not session.is_open, _grows_to(session))


def _grows_to(session: SessionState) -> int:
    return session.num_reserved_tokens if session.has_grown else 0
