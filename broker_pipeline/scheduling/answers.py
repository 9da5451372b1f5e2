"""Reads a microbatch's answer: what it says of each segment, which workers it has passed, what they needed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from broker_pipeline.errors import Failure, MalformedEnvelopeError
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.policies.retries import may_be_the_workers
from broker_pipeline.scheduling.routes import StageInfo
from broker_pipeline.scheduling.step_cost import StepCost


class BatchAnswer:
    """An answer by session."""

    def __init__(self, result: MicrobatchResult) -> None:
        self._tokens = {(token.session, token.position): token for token in result.tokens}
        self._failures = {failed.session: failed for failed in result.failures}

    def worker_of(self, segment: PlannedSegment) -> str | None:
        """Return the name of the worker that left a segment's session out."""
        failed = self._failures.get(segment.session.key.session)
        return failed.worker if failed else None

    def to(self, segment: PlannedSegment) -> tuple[SampledToken, ...] | Failure:
        """Return the token that follows a segment, none where none was wanted, or why it came to nothing.

        Of a segment with drafts, it is what follows the last token that was known, and each draft that is right.
        """
        key = segment.session.key
        if self._failures:
            failed = self._failures.get(key.session)
            if failed is not None and failed.attempt == key.attempt:
                return failed.failure
        if not segment.wants_token:
            return ()
        position = segment.start + segment.count - len(segment.drafts)
        first = self._token(key, position)
        if first is None:
            return MalformedEnvelopeError(f"no token for position {position} came back").to_failure()
        return self._with_right_drafts(segment, first) if segment.drafts else (first,)

    def _with_right_drafts(self, segment: PlannedSegment, first: SampledToken) -> tuple[SampledToken, ...]:
        """Return what was sampled up to the first draft that it differs from, or that nothing was sampled behind."""
        tokens = [first]
        for draft in segment.drafts:
            if tokens[-1].token_id != draft:
                break
            following = self._token(segment.session.key, tokens[-1].position + 1)
            if following is None:
                break
            tokens.append(following)
        return tuple(tokens)

    def _token(self, key: SessionKey, position: int) -> SampledToken | None:
        token = self._tokens.get((key.session, position))
        return token if token is not None and token.attempt == key.attempt else None


def workers_passed(microbatch: PlannedBatch, result: MicrobatchResult) -> tuple[StageInfo, ...]:
    """Return the workers that have surely done what the envelope said: up to the one that answered."""
    names = [worker.name for worker in microbatch.route.workers]
    num_passed = names.index(result.worker) + 1 if result.worker in names else 0
    if result.failure is not None:
        num_passed -= 1  # the one that failed may not have got as far as its closes
    return microbatch.route.workers[: max(0, num_passed)]


def suspects_of(microbatch: PlannedBatch, failure: Failure, worker: str | None) -> tuple[str, ...]:
    """Return the workers, by key, that may be why a session failed on `worker` (any, where nobody says which).

    What it was sent comes from those before it: numbers that are none are theirs as well.
    """
    if not may_be_the_workers(failure):
        return ()
    route = microbatch.route
    names = [each.name for each in route.workers]
    if worker not in names:
        return route.key
    index = names.index(worker)
    return route.key[index : index + 1] if failure.code == "compute" else route.key[: index + 1]


def learn_costs(microbatch: PlannedBatch, result: MicrobatchResult, costs: Mapping[str, StepCost]) -> None:
    """Let every stage's cost, by the worker's key, learn what the microbatch took there."""
    keys = {worker.name: worker.key for worker in microbatch.route.workers}
    for timing in result.timings:
        if cost := costs.get(keys.get(timing.worker, "")):
            cost.observe(microbatch.num_tokens, timing.compute_s)


def outside_s(microbatch: PlannedBatch, result: MicrobatchResult, now: float) -> float:
    """Return the seconds that the microbatch spent outside of stages."""
    return now - microbatch.sent_at - sum(timing.queue_s + timing.compute_s for timing in result.timings)
