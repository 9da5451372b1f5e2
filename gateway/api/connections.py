"""What aiohttp has no hook for: its runner makes the server, and the server makes the protocol.

Requests that its parser refuses before there is a route are answered in the one shape as well, where it answers in
plain text. And who works on a request can wait for the end of its connection.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from broker_pipeline.errors import Failure
from gateway.api.errors import failure_answer
from gateway.api.request_facts import HEADER, begin


class AppRunner(web.AppRunner):
    """Runs an application whose every error is JSON."""

    __slots__ = ()

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server
        return server


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


def connection_lost(request: web.Request) -> asyncio.Event:
    """Return what is set once the client of a request has gone."""
    protocol = request.protocol
    assert isinstance(protocol, _Protocol), "served by another runner"
    return protocol.lost


class _Protocol(RequestHandler):
    __slots__ = ("lost",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.lost = asyncio.Event()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set()
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer, and end the connection: where the next request would begin is unknown."""
        super().handle_error(request, status, exc, message)  # logs it, and raises where an answer has begun
        reason = " ".join((message or HTTPStatus(status).phrase).split())
        code = "internal" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"
        name = begin(request).name
        answer = failure_answer(status, Failure(code, f"this is no request of HTTP/1.1: {reason}"), {HEADER: name})
        answer.force_close()
        return answer
