"""Stands in front of every route: who may come in, from which pages, and to which jobs.

page of another site ──► 403     no key, or an unknown one ──► 401     not for this scope ──► 403
another tenant's job ──► 404, as one that never was     the key has had its share ──► 429
"""

from __future__ import annotations

from functools import cache

from aiohttp import web

from broker_pipeline.errors import PermissionDeniedError
from broker_pipeline.state.job_records import job_not_found
from gateway.access.caller import ANYBODY, Caller, Needed, current_caller, set_caller
from gateway.access.rates import begin_request, rate_headers
from gateway.access.web_pages import is_preflight
from gateway.api.errors import Handler
from gateway.api.openapi import OPERATIONS
from gateway.api.operation import Operation
from gateway.wiring import GATEWAY, Gateway


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request through to its route, or refuse it."""
    gateway = request.app[GATEWAY]
    begin_request()
    gateway.pages.check_page(request.method, request.headers)
    if is_preflight(request.method, request.headers):
        return web.Response(status=204, headers=gateway.pages.preflight_headers(request.headers))
    caller = await _caller(gateway, request)
    set_caller(caller)
    await _check_job(gateway, request)
    operation = _operation_of(request)
    if operation is None or operation.takes == "nothing":
        return await handler(request)
    async with gateway.rates.admitted(caller, has_place=operation.takes == "place"):
        return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what is left of the key's limits, and what lets web pages that may read the answer read it."""
    response.headers.update(rate_headers())
    response.headers.update(request.app[GATEWAY].pages.answer_headers(request.headers.get("Origin")))


async def _caller(gateway: Gateway, request: web.Request) -> Caller:
    scope = scope_of(request)
    if scope is None:
        return ANYBODY
    caller = await gateway.doorkeeper.caller(request.headers.get("Authorization"))
    if not caller.key_hash and "operate" not in caller.scopes:  # what brings a key is no page that found a way here
        gateway.pages.check_host(request.headers.get("Host"))
    if not caller.may(scope):
        raise PermissionDeniedError(_why_not(caller, scope), field="Authorization")
    return caller


def _why_not(caller: Caller, scope: Needed) -> str:
    if caller.key_hash:
        return f"this needs a key with the scope {scope}; this one has {', '.join(sorted(caller.scopes)) or 'none'}"
    return (
        f"this needs a key with the scope {scope}, also on this machine: `broker-pipeline up` leaves a token in its "
        "data directory, or `broker-pipeline keys create NAME --scope operate` makes one"
    )


async def _check_job(gateway: Gateway, request: web.Request) -> None:
    """Treat another tenant's job as one that is not there. Raises `JobNotFoundError`, `StateError`."""
    job_id, caller = request.match_info.get("job_id"), current_caller()
    if job_id is None or caller.sees_all:
        return
    if await gateway.store.tenant(job_id) != caller.tenant:
        raise job_not_found(job_id)


def scope_of(request: web.Request) -> Needed | None:
    """Return the scope that a request needs; None where everybody may come."""
    if request.match_info.route.resource is None:
        return None  # there is nothing but an error
    operation = _operation_of(request)
    return "operate" if operation is None else operation.scope


def _operation_of(request: web.Request) -> Operation | None:
    resource = request.match_info.route.resource
    method = "GET" if request.method == "HEAD" else request.method
    return _operations().get((method.lower(), resource.canonical if resource else ""))


@cache
def _operations() -> dict[tuple[str, str], Operation]:
    return {(operation.method, operation.path): operation for operation in OPERATIONS}
