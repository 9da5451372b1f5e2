"""Follows a job for the client that asked for it, and stops it when that client goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog
from aiohttp import web

from broker_pipeline.errors import CancelledJobError, Failure, PipelineError, ShuttingDownError
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord
from gateway.api.connections import connection_lost
from gateway.intake.request_reader import IDEMPOTENCY_HEADER
from gateway.wiring import GATEWAY, Gateway

T = TypeVar("T")
_WAIT_S = 60.0

log = structlog.get_logger()


async def for_client(request: web.Request, job_id: str, work: Coroutine[Any, Any, T]) -> T:
    """Do what answers a request with a job; whatever ends it before that stops the job at its next token.

    A request with an idempotency key may come back for its job, which therefore goes on. Raises `ConnectionError` as
    soon as the client has gone.
    """
    try:
        return await _while_connected(request, work)
    except BaseException:
        await asyncio.shield(stop_unless_it_may_come_back(request, job_id))
        raise


async def stop_unless_it_may_come_back(request: web.Request, job_id: str) -> None:
    """Stop a job at its next token whose request is not answered; with an idempotency key it may come back for it."""
    if IDEMPOTENCY_HEADER in request.headers:
        return
    try:
        await request.app[GATEWAY].jobs.cancel(job_id)
    except PipelineError as error:
        log.warning("job_not_stopped", job=job_id, code=error.code, message=error.message)


async def ended(gateway: Gateway, job_id: str) -> JobRecord:
    """Return a job's record once it has ended. Raises `ShuttingDownError` where the gateway ends first."""
    while (record := await gateway.watch.finished(job_id, _WAIT_S)).status not in FINAL_STATUSES:
        if gateway.stopping.is_set():
            raise shutting_down()
    return record


def shutting_down() -> ShuttingDownError:
    """Build the error of a request that this gateway cannot answer any more."""
    return ShuttingDownError("this gateway is stopping; send the request again")


def failure_of(record: JobRecord) -> Failure | None:
    """Return why an ended job has no whole result, None where it has one."""
    if record.status == "cancelled":
        return CancelledJobError(f"job {record.job_id} was cancelled").to_failure()
    return record.error if record.status == "failed" else None


async def _while_connected(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(work)
    lost = asyncio.ensure_future(connection_lost(request).wait())
    try:
        await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionResetError("the client has gone")
        return task.result()
    finally:
        task.cancel()
        lost.cancel()
        await asyncio.gather(task, lost, return_exceptions=True)
