"""`/healthz`: the process lives. `/readyz`: what it accepts will be run. `/metrics`: for Prometheus."""

from __future__ import annotations

import structlog
from aiohttp import web

from broker_pipeline.errors import StateError, TransportError, UnauthenticatedError
from broker_pipeline.messages.gateway import Health, Readiness
from broker_pipeline.state.redis_client import memory_used
from gateway import metrics
from gateway.api.json_answer import json_answer
from gateway.api.pipeline_status import read_readiness, read_status
from gateway.wiring import GATEWAY, Gateway

log = structlog.get_logger()


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.get("/healthz", show_health), web.get("/readyz", show_readiness), web.get("/metrics", show_metrics)]


async def show_health(_request: web.Request) -> web.Response:
    """Answer, which is all that is asked."""
    return json_answer(Health())


async def show_readiness(request: web.Request) -> web.Response:
    """Answer 200 or 503, and tell operators why."""
    gateway = request.app[GATEWAY]
    readiness = await read_readiness(gateway)
    shown = readiness if await _is_operator(gateway, request) else Readiness(ready=readiness.ready)
    return json_answer(shown, status=200 if readiness.ready else 503)


async def show_metrics(request: web.Request) -> web.Response:
    """Show the metrics; what cannot be read at this moment keeps its last value."""
    gateway = request.app[GATEWAY]
    await _refresh(gateway)
    return web.Response(body=gateway.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})


async def _is_operator(gateway: Gateway, request: web.Request) -> bool:
    """Whether a request brings a key that may see everything; a wrong one is no reason to refuse a health check."""
    if "Authorization" not in request.headers:
        return False
    try:
        caller = await gateway.doorkeeper.caller(request.headers.get("Authorization"))
    except (UnauthenticatedError, StateError):
        return False
    return caller.may("operate")


async def _refresh(gateway: Gateway) -> None:
    system = gateway.metrics.system
    system.is_up = False
    try:
        system.status, system.redis_memory_used = await read_status(gateway), await memory_used(gateway.redis)
        system.is_up = True
    except (StateError, TransportError) as error:
        log.warning("metrics_incomplete", code=error.code, message=error.message)
