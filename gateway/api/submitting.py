"""What every API does with a request for a job."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager

from aiohttp import web

from broker_pipeline.errors import PipelineError
from gateway.api.request_facts import current
from gateway.intake.job_draft import Draft_co, Submission
from gateway.intake.request_reader import Read
from gateway.jobs.service import Accepted
from gateway.wiring import GATEWAY, Gateway


async def submit(request: web.Request, read: Read[Draft_co]) -> tuple[Accepted, Draft_co]:
    """Accept the job that `read` makes of a request, or the repeat of one, and count what came of it."""
    return await accept(request, request.app[GATEWAY].reader.submission(request, read))


async def accept(
    request: web.Request, prepared: AbstractAsyncContextManager[Submission[Draft_co]]
) -> tuple[Accepted, Draft_co]:
    """Accept the job of a submission, or the repeat of one, and count what came of it."""
    gateway = request.app[GATEWAY]
    outcome = "failed"
    try:
        async with prepared as submission:
            began = time.monotonic()
            accepted = await gateway.jobs.submit(submission)
        _time(gateway, began)
        gateway.metrics.upload_bytes.inc(sum(len(each) for each in submission.contents if isinstance(each, bytes)))
        current().job = accepted.record.job_id
        outcome = "repeated" if accepted.is_repeat else "accepted"
    except PipelineError as error:
        outcome = error.code
        raise
    finally:
        gateway.metrics.submissions.labels(outcome).inc()
    return accepted, submission.draft


def _time(gateway: Gateway, began: float) -> None:
    """Tell how long reading the request took, and how long storing its job, which began at `began`."""
    parts = gateway.metrics.submission_seconds
    parts.labels("read").observe(began - current().began)
    parts.labels("store").observe(time.monotonic() - began)
