"""`/v1/jobs`: the gateway's own API."""

from __future__ import annotations

import re

from aiohttp import web

from broker_pipeline.errors import JobNotFoundError, PipelineError
from broker_pipeline.messages.gateway import JobList
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord
from gateway.access.caller import current_caller
from gateway.api.json_answer import json_answer
from gateway.api.native.job_body import read_job
from gateway.api.request_facts import leave_untimed
from gateway.api.submitting import submit
from gateway.intake.request_reader import client_of
from gateway.intake.validation import convert_strings
from gateway.schemas import JobListQuery, JobQuery
from gateway.viewing.search import Search
from gateway.wiring import GATEWAY

REPEATED_HEADER = "Idempotent-Replayed"
_JOB = "/v1/jobs/{job_id:(?!(?:bulk|wait)$)[^/]+}"
"""Not the paths that stand beside it: what these do not allow is no job."""
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [
        web.post("/v1/jobs", submit_job),
        web.get("/v1/jobs", list_jobs),
        web.get(_JOB, get_job, allow_head=False),
        web.delete(_JOB, delete_job),
        web.post("/v1/jobs/{job_id}/retry", retry_job),
        web.get("/v1/jobs/{job_id}/preview", preview_job, allow_head=False),
    ]


def job_id_of(request: web.Request) -> str:
    """Return the job id in the path; one that no job can have is a `JobNotFoundError`."""
    job_id = request.match_info["job_id"]
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFoundError("no job has such an id", field="job_id")
    return job_id


async def submit_job(request: web.Request) -> web.Response:
    """Accept a job, or the repeat of one."""
    accepted, _ = await submit(request, read_job)
    return _job_answer(accepted.record, status=202, is_repeat=accepted.is_repeat)


async def get_job(request: web.Request) -> web.Response:
    """Show a job; with `wait_s`, as soon as it has finished."""
    gateway = request.app[GATEWAY]
    job_id = job_id_of(request)
    wait_s = convert_strings(request.query, JobQuery).wait_s
    if wait_s == 0:
        return json_answer(await gateway.jobs.get(job_id))
    leave_untimed()
    async with gateway.watch.place(client_of(request)):
        with gateway.metrics.streams.track_inprogress():
            return json_answer(await gateway.watch.finished(job_id, wait_s))


async def delete_job(request: web.Request) -> web.Response:
    """Ask for a job's end: 200 when it has ended, 202 when it will at its next token. A failed job is discarded."""
    gateway = request.app[GATEWAY]
    record = await gateway.jobs.cancel(job_id_of(request))
    if record.status == "failed":
        return json_answer(await gateway.retries.discard(record.job_id))
    return json_answer(record, status=200 if record.status in FINAL_STATUSES else 202)


async def retry_job(request: web.Request) -> web.Response:
    """Retry a failed or cancelled job."""
    gateway = request.app[GATEWAY]
    outcome = "failed"
    try:
        record = await gateway.retries.retry(job_id_of(request))
        outcome = "accepted"
    except PipelineError as error:
        outcome = error.code
        raise
    finally:
        gateway.metrics.retries.labels(outcome).inc()
    return _job_answer(record, status=202, is_repeat=False)


async def list_jobs(request: web.Request) -> web.Response:
    """Show a page of jobs, newest first."""
    query = convert_strings(request.query, JobListQuery)
    store, tenant = request.app[GATEWAY].store, current_caller().listed_tenant
    if query.search is not None:
        found = await Search(query.search, query.status, tenant).run(store, query.after, query.limit)
        counts = {"num_unreadable": found.num_unreadable, "num_searched": found.num_searched}
        return json_answer(JobList(jobs=tuple(found.records), next=found.next, **counts))
    page = await store.list(query.after, query.limit, query.status, tenant)
    return json_answer(JobList(jobs=tuple(page.records), next=page.next, num_unreadable=page.num_unreadable))


async def preview_job(request: web.Request) -> web.Response:
    """Show what a job was asked."""
    return json_answer(await request.app[GATEWAY].previews.of(job_id_of(request)))


def _job_answer(record: JobRecord, *, status: int, is_repeat: bool) -> web.Response:
    headers = {"Location": f"/v1/jobs/{record.job_id}"}
    if is_repeat:
        headers[REPEATED_HEADER] = "true"
    return json_answer(record, status=status, headers=headers)
