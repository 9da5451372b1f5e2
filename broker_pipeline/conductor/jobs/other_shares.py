"""Which jobs a share leaves to the others: those that failed on all that it has, when that may be its workers' fault.

fails for good ──► back into the queue, once ──► pulled by another share: a success shows that the job is well
                                             └─► pulled by this one: left again, a few times; then it is run to its end

Meanwhile this share takes no jobs: a sick one has nothing else to do, and would have each of them back first. Its
pauses grow until a job succeeds here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from broker_pipeline.errors import Failure
from broker_pipeline.scheduling.policies.retries import may_be_the_workers

_MOST_RETURNS = 3
_MOST_REMEMBERED = 10_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 2.0


@dataclass(slots=True)
class OtherShares:
    """What one share has left to the others."""

    num_shares: Callable[[], int] = lambda: 1
    """How many there are, with this one."""
    clock: Callable[[], float] = time.monotonic
    _pause_s: float = field(default=0.0, init=False)
    _paused_until: float = field(default=float("-inf"), init=False)
    _num_returns: dict[str, int] = field(default_factory=dict, init=False)

    def should_try(self, job_id: str, failure: Failure) -> bool:
        """Whether another share is to try a job that has failed for good here; once for each job."""
        if self.num_shares() < 2 or job_id in self._num_returns or not may_be_the_workers(failure):
            return False
        if len(self._num_returns) >= _MOST_REMEMBERED:
            del self._num_returns[next(iter(self._num_returns))]
        self._num_returns[job_id] = 0
        self._pause()
        return True

    def come_first(self, job_id: str) -> bool:
        """Whether a job that was left to the others has come back before one of them can be thought to have had it."""
        if self.num_shares() < 2 or self._num_returns.get(job_id, _MOST_RETURNS) >= _MOST_RETURNS:
            return False
        self._num_returns[job_id] += 1
        self._pause()
        return True

    @property
    def go_first(self) -> bool:
        """Whether the next jobs are for the others."""
        return self.num_shares() > 1 and self.clock() < self._paused_until

    def note_success(self) -> None:
        """Take jobs without a pause again: this share's workers are well."""
        self._pause_s, self._paused_until = 0.0, float("-inf")

    def _pause(self) -> None:
        if self.clock() >= self._paused_until:  # jobs that were taken before it belong to the same one
            self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
            self._paused_until = self.clock() + self._pause_s
