"""Talks to a gateway, through restarts of it.

Every call is repeated while no gateway answers, up to `patience_s` seconds without any answer at all: what it asks for
must be safe to ask for twice.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import aiohttp
import msgspec

from broker_pipeline import __version__
from broker_pipeline.errors import ConfigurationError, Failure, GatewayUnreachableError, error_from_failure

DEFAULT_GATEWAY_URL = "http://127.0.0.1:8080"
DEFAULT_PATIENCE_S = 300.0

_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 5.0
_MAX_RETRY_AFTER_S = 60.0
_ANSWER_TIMEOUT_S = 60.0
_TRY_AGAIN_STATUSES = frozenset({502, 503, 504})

Body = TypeVar("Body", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class GatewayAnswer:
    """An answer of a gateway; `num_tries` counts our own."""

    status: int
    headers: dict[str, str]
    body: bytes
    num_tries: int


class _ErrorDetail(msgspec.Struct, frozen=True):
    code: str
    message: str
    field: str | None = None
    retryable: bool = False


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorDetail


class GatewayClient:
    """A client of one gateway (or of several behind one address). Made by `open`."""

    def __init__(self, session: aiohttp.ClientSession, gateway_url: str, patience_s: float) -> None:
        self._session = session
        self._url = gateway_url
        self._patience_s = patience_s
        self._last_answer = time.monotonic()
        self.num_retries = 0
        """Calls that had to be repeated, for whatever reason."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, gateway_url: str = DEFAULT_GATEWAY_URL, *, patience_s: float = DEFAULT_PATIENCE_S
    ) -> AsyncIterator[Self]:
        """Make a client. Nothing is connected yet; `check` does that."""
        url = gateway_url.rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"{gateway_url} is not the http:// URL of a gateway", field="gateway")
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        headers = {"User-Agent": f"broker-pipeline/{__version__}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers, connector=connector) as session:
            yield cls(session, url, patience_s)

    async def check(self, *, patience_s: float = 3.0) -> None:
        """Make sure that a gateway answers; raises `GatewayUnreachableError` after `patience_s` seconds."""
        await self.call("GET", "/healthz", patience_s=patience_s)

    async def call(
        self,
        method: str,
        path: str,
        *,
        form: Callable[[], aiohttp.FormData] | None = None,
        headers: dict[str, str] | None = None,
        patience_s: float | None = None,
    ) -> GatewayAnswer:
        """Make one call and return its answer.

        Raises `GatewayUnreachableError`, or the error that the gateway answered with.
        """
        started = time.monotonic()
        backoff_s = _FIRST_BACKOFF_S
        num_tries = 0
        while True:
            num_tries += 1
            try:
                answer = await self._try(method, path, form, headers, num_tries)
                wait_s = self._wait_before_retry(answer)
                reason = f"it answers {answer.status}"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                wait_s, reason = None, _reason(error)
            else:
                if wait_s == 0:
                    return answer
            if wait_s is None:
                self._check_patience(started, patience_s, reason)
                wait_s = backoff_s * random.uniform(0.7, 1.3)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            self.num_retries += 1
            await asyncio.sleep(wait_s)

    async def _try(
        self,
        method: str,
        path: str,
        form: Callable[[], aiohttp.FormData] | None,
        headers: dict[str, str] | None,
        num_tries: int,
    ) -> GatewayAnswer:
        async with (
            asyncio.timeout(_ANSWER_TIMEOUT_S),
            self._session.request(method, self._url + path, data=form() if form else None, headers=headers) as response,
        ):
            return GatewayAnswer(response.status, dict(response.headers), await response.read(), num_tries)

    def _wait_before_retry(self, answer: GatewayAnswer) -> float | None:
        """Return 0 for an answer that counts, seconds where the gateway asks for them, None where it is not itself."""
        if answer.status in _TRY_AGAIN_STATUSES:
            return None
        self._last_answer = time.monotonic()
        if answer.status == 429:
            return _retry_after_s(answer) * random.uniform(1.0, 1.3)
        if answer.status >= 400:
            raise error_from_failure(self._failure(answer))
        return 0.0

    def _check_patience(self, started: float, patience_s: float | None, reason: str) -> None:
        limit_s = self._patience_s if patience_s is None else patience_s
        silent_s = time.monotonic() - max(started, self._last_answer)
        if silent_s >= limit_s:
            raise GatewayUnreachableError(
                f"no gateway answers at {self._url} ({reason}); start one with `broker-pipeline up`, "
                "or name a running one with --gateway URL",
                field="gateway",
            )

    def _failure(self, answer: GatewayAnswer) -> Failure:
        try:
            detail = msgspec.json.decode(answer.body, type=_ErrorBody).error
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._not_a_gateway(answer) from None
        return Failure(detail.code, detail.message, detail.field, detail.retryable)

    def decode(self, answer: GatewayAnswer, body_type: type[Body]) -> Body:
        """Return an answer's body; raises `GatewayUnreachableError` where it is not a gateway's of this version."""
        try:
            return msgspec.json.decode(answer.body, type=body_type)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._not_a_gateway(answer) from None

    def _not_a_gateway(self, answer: GatewayAnswer) -> GatewayUnreachableError:
        return GatewayUnreachableError(
            f"what answers at {self._url} (status {answer.status}) is not a gateway of this version", field="gateway"
        )


def _retry_after_s(answer: GatewayAnswer) -> float:
    text = answer.headers.get("Retry-After", "1")
    return min(float(text), _MAX_RETRY_AFTER_S) if text.isdigit() else 1.0


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or "no connection"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
