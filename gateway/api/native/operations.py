"""The rows of our own API in the OpenAPI document."""

from __future__ import annotations

from broker_pipeline.messages.gateway import (
    BulkAnswers,
    CallerInfo,
    EndedJobs,
    JobList,
    JobPreview,
    PipelineStatus,
    RateHistory,
)
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.messages.workers import WorkerRecord
from gateway.api.operation import Operation
from gateway.schemas import BulkRequest, JobListQuery, JobQuery, WaitRequest

NATIVE_OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "post",
        "/v1/jobs",
        "submitJob",
        "Submit a job.",
        {202: JobRecord},
        errors=(400, 408, 409, 413, 422, 429, 503),
        headers={"Idempotency-Key": "Submitting again with the same key returns the first job."},
        takes="place",
        has_job_body=True,
    ),
    Operation(
        "post",
        "/v1/jobs/bulk",
        "submitJobs",
        "Submit many jobs in one request.",
        {200: BulkAnswers},
        errors=(400, 408, 413, 429, 503),
        body=BulkRequest,
    ),
    Operation(
        "post",
        "/v1/jobs/wait",
        "waitForJobs",
        "Wait until some of many jobs have ended.",
        {200: EndedJobs},
        errors=(400, 408, 413, 429, 503),
        body=WaitRequest,
        needs="read",
    ),
    Operation(
        "get",
        "/v1/jobs",
        "listJobs",
        "List jobs, newest first; `search` looks through what they have said, a bounded number at a time.",
        {200: JobList},
        errors=(400, 503),
        query=JobListQuery,
    ),
    Operation(
        "get",
        "/v1/jobs/{job_id}",
        "getJob",
        "Show a job; `wait_s` waits for its end.",
        {200: JobRecord},
        errors=(400, 404, 429, 503),
        query=JobQuery,
    ),
    Operation(
        "delete",
        "/v1/jobs/{job_id}",
        "deleteJob",
        "Stop a job: at once while it is queued, at the next token while it runs. A failed job is forgotten.",
        {200: JobRecord, 202: JobRecord},
        errors=(404, 409, 503),
    ),
    Operation(
        "post",
        "/v1/jobs/{job_id}/retry",
        "retryJob",
        "Retry a failed or cancelled job.",
        {202: JobRecord},
        errors=(404, 409, 422, 429, 503),
        takes="place",
    ),
    Operation(
        "get",
        "/v1/jobs/{job_id}/preview",
        "previewJob",
        "Show what a job was asked: its question, and its first picture made small, where that is still there.",
        {200: JobPreview},
        errors=(404, 429, 503),
    ),
    Operation(
        "get",
        "/v1/jobs/{job_id}/events",
        "streamEvents",
        "Stream a job's events as server-sent events whose data are `JobEvent`s.",
        {200: "text/event-stream"},
        errors=(400, 404, 429, 503),
        headers={"Last-Event-ID": "Tokens seen so far; the stream continues after them."},
    ),
    Operation(
        "post",
        "/v1/workers/{worker}/drain",
        "drainWorker",
        "Ask a worker to take no new sessions, finish those that it has, and end.",
        {202: WorkerRecord},
        errors=(400, 404, 503),
        needs="operate",
    ),
    Operation(
        "get", "/v1/status", "showStatus", "Show workers, routes and queue.", {200: PipelineStatus}, errors=(503,)
    ),
    Operation("get", "/v1/rates", "showRates", "Show the rates of the last hour.", {200: RateHistory}, errors=(503,)),
    Operation(
        "get",
        "/v1/caller",
        "showCaller",
        "Show what the key of this request may do.",
        {200: CallerInfo},
        needs="any",
    ),
)
