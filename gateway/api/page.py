"""`/`: the page for people, and the files that it is made of. `/openapi.json`: what the API is, for programs.

The page is static and asks the same interfaces as everybody. It runs its own scripts and no others, asks nobody else
for anything, and takes text for nothing but text, also where a model or a stranger wrote it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import orjson
from aiohttp import web

from gateway.api.openapi import openapi_document

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked about: the next release's files go together
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page; `tag` changes with its content."""

    content: bytes
    media_type: str
    tag: str


def routes() -> list[web.RouteDef]:
    """Return the routes of this file."""
    return [web.get("/", show_page), web.get("/page/{name}", show_file), web.get("/openapi.json", show_openapi)]


async def show_page(request: web.Request) -> web.Response:
    """Show the page."""
    return _answer(request, page_files()["index.html"])


async def show_file(request: web.Request) -> web.Response:
    """Show a file of the page."""
    if (file := page_files().get(request.match_info["name"])) is None:
        raise web.HTTPNotFound
    return _answer(request, file)


async def show_openapi(_request: web.Request) -> web.Response:
    """Show the API's description."""
    return web.Response(body=orjson.dumps(openapi_document()), content_type="application/json")


@cache
def page_files() -> dict[str, PageFile]:
    """Return every file of the page by its name, as they were when the first was asked for."""
    folder = files("gateway").joinpath("page")
    return {path.name: _file(path.name, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def _file(name: str, content: bytes) -> PageFile:
    return PageFile(content, _TYPES[name.rpartition(".")[2]], hashlib.sha256(content).hexdigest()[:32])


def _answer(request: web.Request, file: PageFile) -> web.Response:
    headers = {**_HEADERS, "ETag": f'"{file.tag}"'}
    if any(tag.value == file.tag for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.content, content_type=file.media_type, charset="utf-8", headers=headers)
