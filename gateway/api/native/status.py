"""`/v1/status`: workers, routes, queue."""

from __future__ import annotations

from aiohttp import web

from gateway.api.json_answer import json_answer
from gateway.api.pipeline_status import read_status
from gateway.wiring import GATEWAY


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.get("/v1/status", show_status)]


async def show_status(request: web.Request) -> web.Response:
    """Show the pipeline's state."""
    return json_answer(await read_status(request.app[GATEWAY]))
