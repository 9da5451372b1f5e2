"""Answers in JSON."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web


def json_answer(body: msgspec.Struct, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Encode a struct as the body of an answer."""
    return web.Response(body=msgspec.json.encode(body), status=status, headers=headers, content_type="application/json")
