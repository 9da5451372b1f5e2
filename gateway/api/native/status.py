"""`/v1/status`: workers, routes, queue. `/v1/rates`: the last hour. `/v1/caller`: what a request's sender may do."""

from __future__ import annotations

from aiohttp import web

from broker_pipeline.messages.gateway import CallerInfo
from gateway.access.caller import current_caller
from gateway.api.json_answer import json_answer
from gateway.api.pipeline_status import read_status
from gateway.wiring import GATEWAY


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [
        web.get("/v1/status", show_status),
        web.get("/v1/rates", show_rates),
        web.get("/v1/caller", show_caller),
    ]


async def show_status(request: web.Request) -> web.Response:
    """Show the pipeline's state."""
    return json_answer(await read_status(request.app[GATEWAY]))


async def show_rates(request: web.Request) -> web.Response:
    """Show the pipeline's rates over the last hour."""
    return json_answer(await request.app[GATEWAY].rate_history.history())


async def show_caller(_request: web.Request) -> web.Response:
    """Show what the sender of this request may do."""
    caller = current_caller()
    scopes = tuple(sorted(caller.scopes))
    has_key = bool(caller.key_hash) or "operate" in caller.scopes
    return json_answer(CallerInfo(tenant=caller.listed_tenant, scopes=scopes, has_key=has_key))
