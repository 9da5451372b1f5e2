"""Counts, times, names and logs every request."""

from __future__ import annotations

import time

import structlog
from aiohttp import web

from broker_pipeline.tracing.activities import REQUEST
from broker_pipeline.tracing.tracer import tracer
from gateway.api.errors import Handler
from gateway.api.request_facts import HEADER, RequestFacts, begin
from gateway.wiring import GATEWAY

log = structlog.get_logger()

_QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Stand outside of everything else and see what comes of a request."""
    facts = begin(request)
    gateway = request.app[GATEWAY]
    with gateway.in_flight.request(), gateway.metrics.in_flight.track_inprogress():
        response = await handler(request)
    if not response.prepared:
        response.headers[HEADER] = facts.name
        if gateway.stopping.is_set():
            response.force_close()
    _count(request, facts, response.status, time.monotonic() - facts.began)
    return response


def _count(request: web.Request, facts: RequestFacts, status: int, seconds: float) -> None:
    route = _route(request)
    metrics = request.app[GATEWAY].metrics
    metrics.requests.labels(request.method, route, status).inc()
    if route not in _QUIET_ROUTES:
        shown: dict[str, str | int] = {"method": request.method, "route": route, "status": status}
        if facts.job:
            shown |= {"session": facts.job, "traceparent": request.headers.get("traceparent", "")}
        tracer.span(REQUEST, tracer.now() - round(seconds * 1e9), **shown)
    if facts.is_timed:
        metrics.request_seconds.labels(route).observe(seconds)
    if route not in _QUIET_ROUTES:
        log.info(
            "request_done",
            method=request.method,
            route=route,
            path=request.path,
            status=status,
            request_s=round(seconds, 4),
            request_id=facts.name,
        )


def _route(request: web.Request) -> str:
    """Return the route's pattern, so that ids in paths do not become labels."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(none)"
