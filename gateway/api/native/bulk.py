"""`/v1/jobs/bulk` and `/v1/jobs/wait`: many jobs in one request, many ends in one answer.

Each job is accepted or refused by itself, and its answer stands where it stood. What a request costs by itself, HTTP
above all, many jobs cost once; their calls to Redis share round trips as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from broker_pipeline.errors import PipelineError, QueueFullError
from broker_pipeline.messages.gateway import BulkAnswer, BulkAnswers, EndedJobs
from gateway.access.caller import current_caller
from gateway.api.error_shapes import native_error
from gateway.api.json_answer import json_answer
from gateway.api.native.job_body import SAMPLING_PATH, checked_draft
from gateway.api.request_facts import leave_untimed, request_id
from gateway.api.submitting import accept
from gateway.intake.body import check_announced
from gateway.intake.request_reader import client_of, parsed, read_json
from gateway.intake.validation import decode_json
from gateway.schemas import BulkJob, BulkRequest, WaitRequest
from gateway.settings import Limits
from gateway.wiring import GATEWAY, Gateway

_NUM_PARALLEL = 64
_MAX_WAIT_BYTES = 128 * 1024
"""Of a body that no memory is held for: the ids of 1,000 jobs."""
_SOON_S = 1.0


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.post("/v1/jobs/bulk", submit_jobs), web.post("/v1/jobs/wait", wait_for_jobs)]


async def submit_jobs(request: web.Request) -> web.Response:
    """Accept many jobs, each by itself."""
    reader = request.app[GATEWAY].reader
    async with reader.room(request):
        limits = await reader.limits()
        check_announced(request, limits.max_body_bytes)
        bulk = await read_json(request, limits, partial(decode_json, body_type=BulkRequest))
        places = asyncio.Semaphore(_NUM_PARALLEL)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_submit(request, raw, limits, places)) for raw in bulk.jobs]
    return json_answer(BulkAnswers(jobs=tuple(task.result() for task in tasks)))


async def wait_for_jobs(request: web.Request) -> web.Response:
    """Show those jobs that have ended, as soon as some have."""
    gateway = request.app[GATEWAY]
    limits = msgspec.structs.replace(gateway.settings.own_limits, max_body_bytes=_MAX_WAIT_BYTES)
    check_announced(request, limits.max_body_bytes)
    asked = await read_json(request, limits, partial(decode_json, body_type=WaitRequest))
    leave_untimed()
    job_ids, others = await _own(gateway, asked.job_ids)
    async with gateway.watch.place(client_of(request)):
        with gateway.metrics.streams.track_inprogress():
            ended = await gateway.watch.any_finished(job_ids, 0.0 if others else asked.wait_s) if job_ids else []
    known = await gateway.store.get_many(ended)
    unknown = set(ended).difference(job.job_id for job in known)
    return json_answer(EndedJobs(jobs=tuple(known), unknown=(*sorted(unknown), *others)))


async def _own(gateway: Gateway, job_ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Divide jobs into those that the caller may see, and others, which are unknown to it."""
    if current_caller().sees_all:
        return job_ids, ()
    own = {job.job_id for job in await gateway.store.get_many(job_ids) if current_caller().may_see(job.tenant)}
    return [job_id for job_id in job_ids if job_id in own], [job_id for job_id in job_ids if job_id not in own]


async def _submit(request: web.Request, raw: msgspec.Raw, limits: Limits, places: asyncio.Semaphore) -> BulkAnswer:
    try:
        async with places:
            job = await parsed(bytes(raw), partial(decode_json, body_type=BulkJob))
            draft = await checked_draft(job, (), limits, SAMPLING_PATH)
            reader = request.app[GATEWAY].reader
            accepted, _ = await accept(request, reader.prepared(request, draft, limits, job.idempotency_key))
    except PipelineError as error:
        failure = error.to_failure()
        soon_s = _SOON_S if failure.retryable else 0.0
        later_s = error.retry_after_s if isinstance(error, QueueFullError) else soon_s
        return BulkAnswer(error=native_error(failure, request_id()).error, retry_after_s=later_s)
    return BulkAnswer(job=accepted.record, is_repeat=accepted.is_repeat)
