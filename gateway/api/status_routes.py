"""`/v1/status`: workers, routes, queue. `/openapi.json`: what the API is. `/`: where things are."""

from __future__ import annotations

import orjson
from aiohttp import web

from gateway.api.index_page import render_index
from gateway.api.json_answer import json_answer
from gateway.api.openapi import openapi_document
from gateway.api.pipeline_status import read_status
from gateway.wiring import GATEWAY


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [
        web.get("/", show_index),
        web.get("/v1/status", show_status),
        web.get("/openapi.json", show_openapi),
    ]


async def show_index(_request: web.Request) -> web.Response:
    """Show a page for people who come with a browser."""
    return web.Response(text=render_index(), content_type="text/html")


async def show_status(request: web.Request) -> web.Response:
    """Show the pipeline's state."""
    return json_answer(await read_status(request.app[GATEWAY]))


async def show_openapi(_request: web.Request) -> web.Response:
    """Show the API's description."""
    return web.Response(body=orjson.dumps(openapi_document()), content_type="application/json")
