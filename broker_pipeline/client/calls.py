"""Calls to a gateway, through restarts of it.

Every call is repeated while no gateway answers, up to `patience_s` seconds without any answer at all: what it asks for
must be safe to ask for twice.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import aiohttp
import msgspec

from broker_pipeline import __version__
from broker_pipeline.client.operator_token import token_for
from broker_pipeline.errors import (
    ConfigurationError,
    GatewayUnreachableError,
    PipelineError,
    QueueFullError,
    error_from_failure,
)
from broker_pipeline.messages.gateway import ErrorBody

DEFAULT_GATEWAY_URL = "http://127.0.0.1:8080"
DEFAULT_PATIENCE_S = 300.0

_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 5.0
_MAX_RETRY_AFTER_S = 60.0
_ANSWER_TIMEOUT_S = 60.0
_TRY_AGAIN_STATUSES = frozenset({502, 503, 504})

Body = TypeVar("Body", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a gateway; `num_tries` counts our own."""

    status: int
    headers: dict[str, str]
    body: bytes
    num_tries: int


class GatewayCalls:
    """Calls to one gateway (or to several behind one address). Made by `open`."""

    def __init__(self, session: aiohttp.ClientSession, gateway_url: str, patience_s: float, timeout_s: float) -> None:
        self._session = session
        self._url = gateway_url
        self._patience_s = patience_s
        self._timeout_s = timeout_s
        self._answered_at = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        gateway_url: str = DEFAULT_GATEWAY_URL,
        *,
        patience_s: float = DEFAULT_PATIENCE_S,
        timeout_s: float = _ANSWER_TIMEOUT_S,
        key: str | None = None,
    ) -> AsyncIterator[Self]:
        """Make a client; each try of a call has `timeout_s` seconds. Nothing is connected yet; `check` does that.

        Without a `key`, it is let in by the token of a `broker-pipeline up` of this machine, where that runs there.
        """
        url = gateway_url.rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{gateway_url} is not the http:// URL of a gateway", field="gateway")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        headers = {"User-Agent": f"broker-pipeline/{__version__}"}
        if key := key or token_for(url):
            headers["Authorization"] = f"Bearer {key}"
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers, connector=connector) as session:
            yield cls(session, url, patience_s, timeout_s)

    async def check(self, *, patience_s: float = 3.0) -> None:
        """Make sure that a gateway answers; raises `GatewayUnreachableError` after `patience_s` seconds."""
        await self.call("GET", "/healthz", patience_s=patience_s)

    async def call(
        self,
        method: str,
        path: str,
        *,
        form: Callable[[], aiohttp.FormData | io.BytesIO] | None = None,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        patience_s: float | None = None,
    ) -> Answer:
        """Make one call, with a form or JSON, and return its answer. Waits as long as the gateway asks for with a 429.

        Raises `GatewayUnreachableError`, or the error that the gateway answered with.
        """
        if body is not None:
            form, headers = (lambda: io.BytesIO(body)), {"Content-Type": "application/json", **(headers or {})}
        started = time.monotonic()
        backoff = backoff_seconds(_FIRST_BACKOFF_S, _MAX_BACKOFF_S)
        num_tries = 0
        while True:
            num_tries += 1
            try:
                answer = await self._try(method, path, form, headers, num_tries)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                reason = _reason(error)
            else:
                if answer.status == 429:
                    self._answered_at = time.monotonic()
                    await asyncio.sleep(_asked_wait_s(answer))
                    continue
                if answer.status not in _TRY_AGAIN_STATUSES:
                    return self._accept(answer)
                reason = f"it answers {answer.status} {answer.body[:300].decode(errors='replace')}".strip()
            self._check_patience(started, self._patience_s if patience_s is None else patience_s, reason)
            await asyncio.sleep(next(backoff))

    async def _try(
        self,
        method: str,
        path: str,
        form: Callable[[], aiohttp.FormData | io.BytesIO] | None,
        headers: dict[str, str] | None,
        num_tries: int,
    ) -> Answer:
        async with (
            asyncio.timeout(self._timeout_s),
            self._session.request(method, self._url + path, data=form() if form else None, headers=headers) as response,
        ):
            return Answer(response.status, dict(response.headers), await response.read(), num_tries)

    def _accept(self, answer: Answer) -> Answer:
        self._answered_at = time.monotonic()
        if answer.status >= 400:
            raise error_from_failure(self.decode(answer, ErrorBody).error.to_failure())
        return answer

    def _check_patience(self, started: float, patience_s: float, reason: str) -> None:
        if time.monotonic() - max(started, self._answered_at) >= patience_s:
            raise GatewayUnreachableError(
                f"no gateway answers at {self._url} ({reason}); start one with `broker-pipeline up`, "
                "or name a running one with --gateway URL",
                field="gateway",
            )

    def has_patience(self, since: float, error: PipelineError) -> bool:
        """Whether to go on asking what has been refused since a moment: for room as long as it takes."""
        return isinstance(error, QueueFullError) or time.monotonic() - since < self._patience_s

    def decode(self, answer: Answer, body_type: type[Body]) -> Body:
        """Return an answer's body; raises `GatewayUnreachableError` where it is not a gateway's of this version."""
        try:
            return msgspec.json.decode(answer.body, type=body_type)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self.not_a_gateway(answer.status) from None

    def not_a_gateway(self, status: int) -> GatewayUnreachableError:
        """Return the error of an answer that no gateway of this version gives."""
        return GatewayUnreachableError(
            f"what answers at {self._url} (status {status}) is not a gateway of this version", field="gateway"
        )


def backoff_seconds(first_s: float, longest_s: float) -> Iterator[float]:
    """Yield how long to wait before each next try: twice as long as before, more or less, up to `longest_s`."""
    wait_s = first_s
    while True:
        yield wait_s * random.uniform(0.7, 1.3)
        wait_s = min(2 * wait_s, longest_s)


def retry_after_s(header: str | None) -> float:
    """Return the seconds of a `Retry-After` header, 60 at most, and 0 where there is none."""
    return min(float(header), _MAX_RETRY_AFTER_S) if header is not None and header.isdigit() else 0.0


def _asked_wait_s(answer: Answer) -> float:
    return (retry_after_s(answer.headers.get("Retry-After")) or 1.0) * random.uniform(1.0, 1.3)


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or "no connection"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
