"""Gives every request a name, so that an answer, a log line and a user's report can be brought together."""

from __future__ import annotations

import re
import secrets

from aiohttp import web

HEADER = "X-Request-Id"
_ACCEPTED = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KEY = "broker_pipeline.request_id"


def request_id(request: web.Request) -> str:
    """Return the request's id: the one that the client sent, where it is harmless, or a new one."""
    if _KEY not in request:
        sent = request.headers.get(HEADER, "")
        request[_KEY] = sent if _ACCEPTED.fullmatch(sent) else secrets.token_hex(8)
    return str(request[_KEY])
