"""Whose jobs are taken from the queue next. Pure.

interactive before batch, but for one batch job after 15 interactive ones
    └── tenants of that priority: the job with the least tag next (start-time fair queueing)

        tag    0    1/3   2/3    1    4/3   5/3    2       a tenant's next job is 1/weight later than its last one
        A (3)  ■     ■     ■     ■     ■     ■     ■       one that was away begins where the others are
        B (1)  ■                 ■                 ■
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from broker_pipeline.messages.jobs import Flow, Turn

INTERACTIVE_PER_BATCH = 15
"""Interactive jobs that go before each batch job that waits."""
_MOST_REMEMBERED = 10_000


@dataclass(slots=True, eq=False)
class FairShares:
    """What each flow has had, and whose turn that makes it."""

    weight_of: Callable[[str], float] = lambda _: 1.0
    """Of a tenant, above 0."""
    first_waiting: Callable[[bool], float] = lambda _: float("inf")
    """Return the tag of the first job that was taken and has not begun, batch or not: nobody new is behind it."""
    _tags: dict[Flow, float] = field(default_factory=dict)
    """Of each flow's next job."""
    _now: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    """The tag of the job that was taken last, by whether it was a batch job."""
    _num_before_batch: int = INTERACTIVE_PER_BATCH
    """Interactive jobs that still go before a batch job."""

    def plan(self, backlog: Mapping[Flow, int], num_wanted: int, num_batch: int | None = None) -> dict[Flow, int]:
        """Return how many jobs to take of which flow, of those that wait: `num_wanted`, at most `num_batch` batch."""
        num_batch = num_wanted if num_batch is None else num_batch
        if len(backlog) == 1:
            ((flow, num),) = backlog.items()
            num = min(num, num_wanted, num_batch if _is_batch(flow) else num_wanted)
            return {flow: num} if num > 0 else {}
        ahead = replace(self, _tags=dict(self._tags), _now=dict(self._now))
        left = {flow: num for flow, num in backlog.items() if num > 0}
        planned: Counter[Flow] = Counter()
        while planned.total() < num_wanted:
            if num_batch <= 0:
                left = {flow: num for flow, num in left.items() if not _is_batch(flow)}
            if not left:
                break
            flow = ahead.next_of(left)
            num_batch -= ahead.take(flow).is_batch
            planned[flow] += 1
            left[flow] -= 1
            if not left[flow]:
                del left[flow]
        return dict(planned)

    def next_of(self, waiting: Mapping[Flow, object]) -> Flow:
        """Return the flow whose job is next, of those that have one."""
        batch = [flow for flow in waiting if _is_batch(flow)]
        interactive = [flow for flow in waiting if not _is_batch(flow)]
        first = batch if not interactive or (batch and not self._num_before_batch) else interactive
        return min(first, key=lambda flow: (self._turn(flow), flow.tenant))

    def take(self, flow: Flow) -> Turn:
        """Note that a job of a flow was taken; return its place among those that wait."""
        turn = self._turn(flow)
        self._num_before_batch = num_before_batch(self._num_before_batch, is_batch=turn.is_batch)
        self._now[turn.is_batch] = max(turn.tag, self._now[turn.is_batch])
        if len(self._tags) >= _MOST_REMEMBERED:
            self._tags = {each: tag for each, tag in self._tags.items() if tag > self._now[_is_batch(each)]}
        self._tags[flow] = turn.tag + 1 / self.weight_of(flow.tenant)
        return turn

    def _turn(self, flow: Flow) -> Turn:
        is_batch = _is_batch(flow)
        start = min(self._now[is_batch], self.first_waiting(is_batch))
        return Turn(is_batch, max(start, self._tags.get(flow, start)))


def num_before_batch(num_left: int, *, is_batch: bool) -> int:
    """Return how many interactive jobs still go before a batch job, after one more of these."""
    return INTERACTIVE_PER_BATCH if is_batch else max(0, num_left - 1)


def _is_batch(flow: Flow) -> bool:
    return flow.priority != "interactive"
