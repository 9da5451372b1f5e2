"""Whether a session that was lost gets another attempt, when, and by itself or in company. Pure.

A job has two of these policies: for its preparation, and for its computation.

    what happened                                         what follows
    ────────────────────────────────────────────────────  ──────────────────────────────────────────────────────────
    a worker failed it, and another has not tried yet     on the other, by itself if it may break that; uncounted
    lost with a worker, or with others, not in flight     at once; does not count
    the computation failed, or a stage refused its input  by itself; if that fails again, the job fails
    in a worker's hands when it died, or too late         counts; from the second time on by itself
    a stage had no room, no rows, or another idea of it   counts
    failed three times like that                          as where there are no others
    the input is wrong (a broken image, say)              the job fails at once

What counts is bounded and waits longer every time; a token more than last time starts the count again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from msgspec.structs import replace

from broker_pipeline.errors import Failure, RetriesExhaustedError

# Failures of the computation on just this input: the session may be the cause whenever it was in the microbatch.
_BREAKS_STAGES = frozenset(
    {
        *("compute", "non_finite_logits", "constant_logits"),
        *("contract", "malformed_envelope", "tensor_mismatch", "payload_too_large"),
    }
)
# A stage's view of a session differs from the conductor's: a new attempt sets that right, though no repeat would.
_OUT_OF_STEP = frozenset(
    {"stale_attempt", "session_unknown", "kv_position", "kv_capacity", "visual_rows_missing", "worker_busy"}
)
# The broker failed, or a stage of the route that it was being prepared for; not the session.
_NOBODYS_FAULT = frozenset({"transport", "slow_consumer", "no_responder", "stale_epoch", "route_lost"})
# What a worker that is well says under load, or of a session that somebody else has spoilt; and deaths, which an input
# may cause again and again.
_NOT_THE_WORKERS = frozenset(
    {"worker_lost", "visual_rows_missing", "worker_busy", "stale_attempt", "payload_too_large"}
)
_MOST_ELSEWHERE = 2  # times that an input is tried elsewhere before it counts as the cause
_BROKER_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How often and how fast. Times in seconds."""

    max_attempts: int = 5
    backoff_s: float = 0.2
    max_backoff_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `delay_s`; `is_alone`: in a microbatch of its own."""

    delay_s: float
    is_alone: bool


def may_be_the_workers(failure: Failure) -> bool:
    """Whether a failure may be its worker's own fault, so that another worker would not meet it."""
    if failure.code in _NOBODYS_FAULT or failure.code in _NOT_THE_WORKERS:
        return False
    return failure.retryable or failure.code in _BREAKS_STAGES or failure.code in _OUT_OF_STEP


class RetryPolicy:
    """What one job has been through in this conductor."""

    def __init__(self, limits: RetryLimits) -> None:
        self._limits = limits
        self.is_alone = False
        """Whether the session is on its own in this attempt."""
        self.failed_on: frozenset[str] = frozenset()
        """Workers that may have been why it failed: others are asked first."""
        self._failed: frozenset[str] = frozenset()
        self._failed_alone: frozenset[str] = frozenset()
        self._num_elsewhere = 0
        self._num_counted = 0
        self._is_suspect = False
        self._num_tokens = 0

    def anew(self) -> RetryPolicy:
        """Return a policy with the same limits, for a session that has been through nothing."""
        return RetryPolicy(self._limits)

    def after(
        self,
        failure: Failure,
        *,
        is_blamed: bool,
        num_tokens: int,
        suspects: Collection[str] = (),
        has_other: Callable[[Collection[str]], bool] = lambda _: False,
    ) -> Retry | Failure:
        """Decide what follows a failure; a Failure is the job's end. `num_tokens`: output tokens it had got to.

        `suspects` are the workers whose fault it may be; `has_other` says whether it can be tried without some.
        """
        if num_tokens > self._num_tokens:
            self._num_tokens, self._num_counted, self._is_suspect = num_tokens, 0, False
            self.is_alone = False  # a session is alone up to its first token
            self.failed_on = self._failed = self._failed_alone = frozenset()
            self._num_elsewhere = 0
        verdict = (self._elsewhere(failure, suspects, has_other) if is_blamed and suspects else None) or self._after(
            failure, is_blamed=is_blamed
        )
        self.is_alone = isinstance(verdict, Retry) and verdict.is_alone
        return verdict

    def _elsewhere(
        self, failure: Failure, suspects: Collection[str], has_other: Callable[[Collection[str]], bool]
    ) -> Retry | None:
        """Try other workers, if there are any: that shows whose fault it is.

        Where it has failed on all, those come again on which it failed in company: another may have been why.
        """
        if not may_be_the_workers(failure) or not has_other(suspects):
            return None
        self._failed = self._failed.union(suspects)
        if self.is_alone:
            self._failed_alone = self._failed_alone.union(suspects)
        self._num_elsewhere += 1
        self.failed_on = self._failed if has_other(self._failed) else self._failed_alone
        if self._num_elsewhere > _MOST_ELSEWHERE or not has_other(self.failed_on):
            return None
        self._is_suspect |= failure.code in _BREAKS_STAGES
        return Retry(0.0, self._is_suspect)

    def _after(self, failure: Failure, *, is_blamed: bool) -> Retry | Failure:
        if failure.code in _NOBODYS_FAULT:
            return Retry(_BROKER_PAUSE_S, self._is_suspect)
        if not is_blamed:
            return Retry(0.0, self._is_suspect)
        if failure.code in _BREAKS_STAGES:
            if self.is_alone:
                return _exhausted(failure, "failed again when it was on its own")
            self._is_suspect = True
        elif not failure.retryable and failure.code not in _OUT_OF_STEP:
            return failure
        return self._count(failure)

    def _count(self, failure: Failure) -> Retry | Failure:
        self._num_counted += 1
        if self._num_counted >= self._limits.max_attempts:
            return _exhausted(failure, f"failed in {self._num_counted} attempts, each time at the same token")
        self._is_suspect |= self._num_counted > 1 and failure.code not in _OUT_OF_STEP
        delay_s = self._limits.backoff_s * 2 ** (self._num_counted - 1) if self._num_counted > 1 else 0.0
        return Retry(min(delay_s, self._limits.max_backoff_s), self._is_suspect)


def named(failure: Failure, workers: Collection[str]) -> Failure:
    """Return the end of a job that no attempt helped, with the workers that may have been why."""
    if not workers or failure.code != RetriesExhaustedError.code:
        return failure
    return replace(failure, message=f"{failure.message} (on {' or '.join(workers)})")


def _exhausted(failure: Failure, what: str) -> Failure:
    return RetriesExhaustedError(f"{what}; the last cause ({failure.code}): {failure.message}").to_failure()
