"""What aiohttp has no hook for: its runner makes the server, and the server makes the protocol.

Requests that its parser refuses before there is a route are answered in the one shape as well, where it answers in
plain text. And who works on a request can wait for the end of its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadStatusLine, LineTooLong
from aiohttp.web_protocol import RequestHandler

from broker_pipeline.errors import Failure
from gateway.api.errors import failure_answer
from gateway.api.request_facts import HEADER, begin
from gateway.wiring import GATEWAY

log = structlog.get_logger()


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


@asynccontextmanager
async def reading(request: web.Request, num_bytes: int) -> AsyncIterator[None]:
    """Send a client so many bytes while the context is open; one that does not read them in time is cut off.

    It may take as long as it might for sending them. Raises `ConnectionResetError`.
    """
    try:
        async with asyncio.timeout(request.app[GATEWAY].settings.limits.pace.allowed_s(num_bytes)):
            yield
    except TimeoutError as error:
        if request.transport is not None:
            request.transport.abort()  # what it has not read would be waited for without end
        raise ConnectionResetError("the client does not read") from error


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
        name = begin(request).name
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or request.writer.output_size:
            super().handle_error(request, status, exc, message)  # logs it, and raises where an answer has begun
            code, reason = "internal", HTTPStatus(status).phrase
        else:
            code, reason = "invalid_request", _reason(exc)
            log.info("request_unreadable", request_id=name, reason=reason)
        answer = failure_answer(status, Failure(code, f"this is no request of HTTP/1.1: {reason}"), {HEADER: name})
        answer.force_close()
        return answer


def _reason(error: BaseException | None) -> str:
    """Say what is wrong with a request without repeating any of it, as aiohttp does: it may be a key."""
    if isinstance(error, LineTooLong):
        return f"a line of its head has more than {error.args[1]} bytes"
    if isinstance(error, BadStatusLine):
        return "its first line"
    return "its headers"
