"""`/`: a page that says where things are. `/openapi.json`: what the API is."""

from __future__ import annotations

from html import escape

import orjson
from aiohttp import web

from broker_pipeline import __version__
from gateway.api.openapi import openapi_document

_LINKS = (
    ("/v1/status", "workers, routes, queue"),
    ("/v1/jobs", "jobs, newest first"),
    ("/openapi.json", "description of the API"),
    ("/metrics", "metrics for Prometheus"),
    ("/readyz", "whether jobs will be run now"),
)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>broker-pipeline</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto}}</style>
<h1>broker-pipeline {version}</h1>
<ul>
{links}
</ul>
<pre>curl -F image=@photo.jpg -F prompt='What is this?' http://HOST/v1/jobs
curl http://HOST/v1/jobs/JOB_ID?wait_s=20
curl -N http://HOST/v1/jobs/JOB_ID/events</pre>
</html>
"""


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.get("/", show_index), web.get("/openapi.json", show_openapi)]


async def show_index(_request: web.Request) -> web.Response:
    """Show a page for people who come with a browser."""
    links = "\n".join(f'<li><a href="{path}">{path}</a>: {escape(text)}' for path, text in _LINKS)
    return web.Response(text=_PAGE.format(version=escape(__version__), links=links), content_type="text/html")


async def show_openapi(_request: web.Request) -> web.Response:
    """Show the API's description."""
    return web.Response(body=orjson.dumps(openapi_document()), content_type="application/json")
