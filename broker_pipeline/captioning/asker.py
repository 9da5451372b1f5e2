"""Asks a gateway one question about one picture, so that asking twice is asking once."""

from __future__ import annotations

import asyncio

from broker_pipeline.client.bulk_calls import BulkCalls
from broker_pipeline.client.caption_request import CaptionRequest, Picture, idempotency_key
from broker_pipeline.client.gateway_client import Submitted
from broker_pipeline.errors import JobNotFoundError
from broker_pipeline.messages.jobs import JobRecord

_MAX_RESUBMISSIONS = 5


class Asker:
    """Submits jobs and waits for their ends."""

    def __init__(self, calls: BulkCalls) -> None:
        """Ask through `calls`."""
        self._calls = calls
        self._accepted: set[str] = set()

    @property
    def num_left_running(self) -> int:
        """Jobs that the gateway goes on with although nobody waits here any more."""
        return len(self._accepted)

    async def ask(
        self,
        picture: Picture,
        media: bytes | str,
        request: CaptionRequest,
        num_failures: int,
        *,
        is_video: bool = False,
    ) -> JobRecord:
        """Return the job once it has ended. `media` are bytes, or the URL where workers read them.

        `num_failures` counts jobs that failed before: one more makes another job.
        Submits again where the gateway forgot the job, or only remembers one of no use. Raises as `GatewayClient` does.
        """
        error: JobNotFoundError | None = None
        for _ in range(_MAX_RESUBMISSIONS):
            key = idempotency_key(picture, request, num_failures)
            submitted = await self._calls.submit(media, request, key, is_video=is_video)
            if _is_old_failure(submitted) or _is_of_another_model(submitted, request):
                num_failures += 1
                continue
            try:
                return await self._wait(submitted.record.job_id)
            except JobNotFoundError as lost:
                error = lost
        raise error or JobNotFoundError("the gateway only knows earlier submissions of this picture, of no use")

    async def _wait(self, job_id: str) -> JobRecord:
        self._accepted.add(job_id)
        try:
            return await self._calls.wait(job_id)
        finally:
            if not _is_cancelling():
                self._accepted.discard(job_id)


def _is_old_failure(submitted: Submitted) -> bool:
    """Whether the gateway answered with a job that failed in an earlier run.

    After a retry of our own it may be this run's job that failed meanwhile, which is then the answer.
    """
    return submitted.is_repeat and submitted.num_tries == 1 and submitted.record.status in {"failed", "cancelled"}


def _is_of_another_model(submitted: Submitted, request: CaptionRequest) -> bool:
    """Whether the gateway answered with a job that a model finished which had come into the asked one's place."""
    result = submitted.record.result
    model = result.fingerprint if submitted.is_repeat and result else None
    return model is not None and model != request.model


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
