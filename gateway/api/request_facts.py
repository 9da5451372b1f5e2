"""What is known about the request that this task works on: its name above all, so that an answer, a log line and a
user's report can be brought together.
"""

from __future__ import annotations

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass

from aiohttp import web

from gateway.api.error_shapes import is_openai

HEADER = "X-Request-Id"
_ACCEPTED = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


@dataclass(slots=True)
class RequestFacts:
    """One request's name, and whether how long it takes says anything."""

    name: str
    began: float
    """By the monotonic clock, in seconds."""
    is_openai: bool = False
    """Whether it is answered in OpenAI's shapes."""
    is_timed: bool = True
    job: str = ""
    """The job that it made, if it did."""


_current: ContextVar[RequestFacts] = ContextVar("request_facts")


def begin(request: web.BaseRequest) -> RequestFacts:
    """Start a request: it is named as the client says, where that is harmless, or anew."""
    sent = request.headers.get(HEADER, "")
    name = sent if _ACCEPTED.fullmatch(sent) else secrets.token_hex(8)
    facts = RequestFacts(name, time.monotonic(), is_openai=is_openai(request.path))
    _current.set(facts)
    return facts


def current() -> RequestFacts:
    """Return what is known about the request at hand."""
    return _current.get()


def request_id() -> str:
    """Return the name of the request at hand."""
    return _current.get().name


def leave_untimed() -> None:
    """Keep a request that waits on purpose out of the statistics of how long requests take."""
    _current.get().is_timed = False
