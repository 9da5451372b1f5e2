"""Counts, times, names and logs every request."""

from __future__ import annotations

import time

import structlog
from aiohttp import web

from gateway.errors_http import Handler
from gateway.metrics import Metrics
from gateway.request_id import HEADER, request_id

log = structlog.get_logger()

METRICS = web.AppKey("metrics", Metrics)
_QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})
_UNTIMED = "broker_pipeline.untimed"


def leave_untimed(request: web.Request) -> None:
    """Keep a request that waits on purpose out of the statistics of how long requests take."""
    request[_UNTIMED] = True


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Stand outside of everything else and see what comes of a request."""
    started = time.monotonic()
    response = await handler(request)
    if not response.prepared:
        response.headers[HEADER] = request_id(request)
    _count(request, response.status, time.monotonic() - started)
    return response


def _count(request: web.Request, status: int, seconds: float) -> None:
    route = _route(request)
    metrics = request.app[METRICS]
    metrics.requests.labels(request.method, route, status).inc()
    if not request.get(_UNTIMED):
        metrics.request_seconds.labels(route).observe(seconds)
    if route not in _QUIET_ROUTES:
        log.info(
            "request_done",
            method=request.method,
            route=route,
            path=request.path,
            status=status,
            request_s=round(seconds, 4),
            request_id=request_id(request),
        )


def _route(request: web.Request) -> str:
    """Return the route's pattern, so that ids in paths do not become labels."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "(none)"
