"""Jobs that have failed: sent again, discarded, or made to fail because nobody can run them.

    failed | cancelled ──retry──► queued, unpublished ──publish──► queued ──► …

A job that is sent again is noted in `unpublished_jobs` until it is in the queue. What becomes of their media is for the
caller to see to (`MediaStore.keep`, `reclaim`, `hold`, `release`).
As in `job_store`, every method is one script and may be repeated.
"""

from __future__ import annotations

import time

import msgspec

from broker_pipeline.errors import Failure, JobStateError
from broker_pipeline.messages.jobs import JobRecord, JobSpec
from broker_pipeline.state.job_records import RECORD_FIELDS, as_json, job_not_found, job_record, job_scripts, spec_args
from broker_pipeline.state.redis_client import RedisClient, state_errors

_ASIDE_S = 24 * 3600
_decode_spec = msgspec.json.Decoder(JobSpec).decode


class FailedJobs:
    """The failed jobs of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        """Share the jobs with every `JobStore` of this Redis and namespace."""
        self._run = job_scripts(redis, namespace)

    async def retry(self, spec: JobSpec) -> JobRecord:
        """Queue a job that has ended once more, as `spec`, whose `num_retries` is one more than the job has.

        It has no tokens, result or error then; its end is in its `failures`. To be followed by
        `JobPublisher.publish`. Raises `JobNotFoundError`, or `JobStateError` when it has neither failed nor been
        cancelled.
        """
        args = {**spec_args(spec), "record_fields": RECORD_FIELDS}
        outcome, *fields = await self._run("retry", args, f"cannot send job {spec.job_id} again")
        record = _record(spec.job_id, outcome, fields)
        if outcome != 1:
            raise not_retryable(record)
        return record

    async def discard(self, job_id: str) -> tuple[JobRecord, JobSpec]:
        """Forget a failed job and return what it was. Raises `JobNotFoundError`, or `JobStateError` for any other."""
        action = f"cannot discard job {job_id}"
        args = {"job_id": job_id, "record_fields": RECORD_FIELDS}
        outcome, *fields = await self._run("discard_failed", args, action)
        record = _record(job_id, outcome, fields)
        if outcome != 1:
            raise JobStateError(f"job {job_id} is {record.status}; only failed jobs are discarded", field="job_id")
        with state_errors(action):
            return record, _decode_spec(fields[1])

    async def fail_garbled(self, job_id: str, spec: JobSpec | None, failure: Failure) -> bool:
        """End a job whose record or tokens are garbled, with a new record; False when it has ended already.

        Without `spec` nobody knows what was asked for, so that it cannot be sent again.
        """
        unknown = {"spec": "", "created_at": repr(time.time()), "metadata": "{}", "num_retries": 0, "tenant": ""}
        asked = {"job_id": job_id, **unknown}
        args = {**(spec_args(spec) if spec else asked), "error": as_json(failure), "for_s": _ASIDE_S}
        return bool(await self._run("fail_garbled", args, f"cannot fail job {job_id}"))

    async def fail_unreadable(self, job_id: str, failure: Failure) -> JobSpec | None:
        """End a job whose message nobody can read; None when it has ended already, or is unknown."""
        action = f"cannot fail job {job_id}"
        spec = await self._run("fail_unreadable", {"job_id": job_id, "error": as_json(failure)}, action)
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
