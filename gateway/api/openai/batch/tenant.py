"""Whose files and batches a request is about."""

from __future__ import annotations

from aiohttp import web

from gateway.access.caller import current_caller


def tenant_of(_request: web.Request) -> str:
    """Return the tenant of the request's key; everybody is the same one as long as there are no keys."""
    return current_caller().tenant
