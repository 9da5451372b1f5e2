"""Notes of jobs that are recorded and may not be in the queue yet.

    create, retry ──► noted ──publish──► mark ──► gone
                        └── whoever recorded it dies here: the active conductor finds it in `left`

A note stands by the time of its recording, so that what is overdue is found without looking at any other job.
Every method is one script and may be repeated.
"""

from __future__ import annotations

from broker_pipeline.messages.jobs import JobSpec
from broker_pipeline.state.job_records import job_scripts
from broker_pipeline.state.redis_client import RedisClient

_MAX_LEFT = 100


class UnpublishedJobs:
    """The notes of one namespace."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        """Share the notes with every `JobStore` of this Redis and namespace."""
        self._run = job_scripts(redis, namespace)

    async def mark(self, spec: JobSpec) -> None:
        """Note that the queue has a job."""
        args = {"job_id": spec.job_id, "num_retries": spec.num_retries}
        await self._run("mark_published", args, f"cannot note that job {spec.job_id} is queued")

    async def left(self, since_s: float) -> list[str]:
        """Return some jobs that were recorded more than `since_s` seconds ago and may not be in the queue yet."""
        args = {"since_s": since_s, "limit": _MAX_LEFT}
        ids: list[bytes] = await self._run("list_unpublished", args, "cannot list jobs that are not in the queue")
        return [job_id.decode() for job_id in ids]
