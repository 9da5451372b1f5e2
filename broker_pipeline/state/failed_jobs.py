"""Jobs that have failed: sent again, discarded, or made to fail because nobody can run them.

What becomes of their media is for the caller to see to (`MediaStore.keep`, `reclaim`, `hold`, `release`). As in
`job_store`, every method is one script and may be repeated.
"""

from __future__ import annotations

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import Failure, JobStateError
from broker_pipeline.messages.jobs import JobRecord, JobSpec
from broker_pipeline.state import failed_job_scripts
from broker_pipeline.state.job_records import JobScripts, job_not_found, job_record
from broker_pipeline.state.redis_client import RedisClient, state_errors

_MAX_UNPUBLISHED = 100
_encode = msgspec.json.Encoder().encode
_decode_spec = msgspec.json.Decoder(JobSpec).decode


class FailedJobs:
    """The failed jobs of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        self._run = JobScripts(redis, namespace).run
        self._unpublished = [redis_keys.unpublished(namespace)]

    async def retry(self, spec: JobSpec) -> JobRecord:
        """Queue a job that has ended once more, as `spec`, whose `num_retries` is one more than the job has.

        It has no tokens, result or error then; its end is in its `failures`. To be followed by publishing `spec` and
        `mark_published`. Raises `JobNotFoundError`, or `JobStateError` when it has neither failed nor been cancelled.
        """
        args = [spec.job_id, _encode(spec), spec.num_retries]
        action = f"cannot send job {spec.job_id} again"
        outcome, *fields = await self._run(failed_job_scripts.RETRY_JOB, args, action, extra_keys=self._unpublished)
        record = _record(spec.job_id, outcome, fields)
        if outcome != 1:
            raise not_retryable(record)
        return record

    async def mark_published(self, spec: JobSpec) -> None:
        """Note that the queue has a job that was sent again."""
        args = [spec.job_id, spec.num_retries]
        action = f"cannot note that job {spec.job_id} is queued"
        await self._run(failed_job_scripts.MARK_PUBLISHED, args, action, extra_keys=self._unpublished)

    async def unpublished(self, since_s: float) -> list[str]:
        """Return some jobs that were sent again more than `since_s` seconds ago and may not be in the queue yet."""
        ids: list[bytes] = await self._run(
            failed_job_scripts.LIST_UNPUBLISHED,
            [since_s, _MAX_UNPUBLISHED],
            "cannot list jobs that were sent again",
            extra_keys=self._unpublished,
        )
        return [job_id.decode() for job_id in ids]

    async def discard(self, job_id: str) -> tuple[JobRecord, JobSpec]:
        """Forget a failed job and return what it was. Raises `JobNotFoundError`, or `JobStateError` for any other."""
        action = f"cannot discard job {job_id}"
        outcome, *fields = await self._run(failed_job_scripts.DISCARD_FAILED_JOB, [job_id], action)
        record = _record(job_id, outcome, fields)
        if outcome != 1:
            raise JobStateError(f"job {job_id} is {record.status}; only failed jobs are discarded", field="job_id")
        with state_errors(action):
            return record, _decode_spec(fields[1])

    async def fail_unreadable(self, job_id: str, failure: Failure) -> JobSpec | None:
        """End a job whose message nobody can read; None when it has ended already, or is unknown."""
        action = f"cannot fail job {job_id}"
        spec = await self._run(failed_job_scripts.FAIL_UNREADABLE_JOB, [job_id, _encode(failure)], action)
        with state_errors(action):
            return _decode_spec(spec) if spec else None


def not_retryable(record: JobRecord) -> JobStateError:
    """Build the error of a job that cannot be sent again."""
    return JobStateError(
        f"job {record.job_id} is {record.status}; only failed and cancelled jobs can be sent again", field="job_id"
    )


def _record(job_id: str, outcome: int, fields: list[list[bytes | None]]) -> JobRecord:
    if outcome == 0:
        raise job_not_found(job_id)
    return job_record(job_id, fields[0])
