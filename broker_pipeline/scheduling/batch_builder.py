"""Numbers microbatches, puts closes into them, and says until when each is to be answered. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from broker_pipeline.scheduling.kv_ledger import KVLedger
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.step_cost import StepCost

_MAX_CLOSES = 1024  # in one envelope; more wait for the next
_PATIENCE = 4.0  # a step may take this many times its estimate before it is late


class BatchBuilder:
    """Makes the microbatches of one scheduler."""

    def __init__(self, limits: SchedulerLimits, ledger: KVLedger) -> None:
        self._limits = limits
        self._ledger = ledger
        self._numbers = itertools.count(1)

    def make(
        self,
        route: Route,
        segments: tuple[PlannedSegment, ...],
        costs: Sequence[StepCost],
        num_in_flight: int,
        now: float,
    ) -> PlannedBatch:
        """Return a microbatch of these segments; `costs` are those of the route's stages.

        The `num_in_flight` that were sent before it come first, so that its answer may take so much longer.
        """
        limits = self._limits
        num_tokens = sum(segment.count for segment in segments)
        expected_s = _PATIENCE * sum(cost.estimate(num_tokens) for cost in costs) * (1 + num_in_flight)
        is_first = not all(cost.is_known for cost in costs)
        allowed_s = max(limits.first_deadline_s if is_first else 0.0, limits.deadline_s + expected_s)
        return PlannedBatch(
            number=next(self._numbers),
            route=route,
            segments=segments,
            closes=self._ledger.pending_closes(route, _MAX_CLOSES),
            sent_at=now,
            deadline=now + allowed_s,
            suspect_at=now + limits.suspect_s + expected_s,
            num_tokens=num_tokens,
        )

    def make_empty(self, route: Route, now: float, allowed_s: float) -> PlannedBatch:
        """Return a microbatch of nothing but closes."""
        closes = self._ledger.pending_closes(route, _MAX_CLOSES)
        return PlannedBatch(next(self._numbers), route, (), closes, now, now + allowed_s)
