"""`/v1/workers`: what an operator asks of single workers."""

from __future__ import annotations

import structlog
from aiohttp import web

from broker_pipeline import subjects
from broker_pipeline.errors import InvalidRequestError, NoResponderError, RequestTimeoutError, WorkerNotFoundError
from broker_pipeline.messages.control import DrainReply, DrainRequest
from broker_pipeline.messages.workers import COMPUTING_ROLES, WorkerRecord
from gateway.api.json_answer import json_answer
from gateway.wiring import GATEWAY, Gateway

_DRAIN_TIMEOUT_S = 5.0

log = structlog.get_logger()


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.post("/v1/workers/{worker}/drain", drain_worker)]


async def drain_worker(request: web.Request) -> web.Response:
    """Ask a worker to take no new sessions, finish those that it has, and end: 202 when it has understood."""
    gateway = request.app[GATEWAY]
    record = await _record(gateway, request.match_info["worker"])
    drain = DrainRequest(pipeline=record.pipeline)
    try:
        reply = await gateway.transport.request(
            subjects.drain(record.subject), drain, reply_type=DrainReply, timeout_s=_DRAIN_TIMEOUT_S
        )
    except (NoResponderError, RequestTimeoutError) as error:
        raise WorkerNotFoundError(
            f"worker {record.worker} is on the list but does not answer: it hangs, or has just ended", field="worker"
        ) from error
    log.info("worker_drain_requested", worker=record.worker, instance=record.instance)
    return json_answer(reply.body.record, status=202)


async def _record(gateway: Gateway, name: str) -> WorkerRecord:
    records = await gateway.registry.records()
    record = next((record for record in records if record.worker == name), None)
    if record is None:
        names = ", ".join(record.worker for record in records if record.role in COMPUTING_ROLES) or "none"
        raise WorkerNotFoundError(f"no live worker is called {name}; there are: {names}", field="worker")
    if record.role not in COMPUTING_ROLES:
        raise InvalidRequestError(
            f"{name} is a {record.role}; only stage and vision workers are drained", field="worker"
        )
    return record
