"""Reads request bodies under the gateway's own limit, whatever the client says about their length."""

from __future__ import annotations

import asyncio
import time

from aiohttp import StreamReader, web

from broker_pipeline.errors import BodyTooLargeError, BodyTooSlowError, InvalidRequestError
from gateway.settings import Pace

_CHUNK_BYTES = 256 * 1024
_ENCODINGS = {"gzip", "deflate", "identity"}


def check_announced(request: web.Request, max_bytes: int) -> None:
    """Refuse a body that announces itself as too large, or encoded as is not decoded here, before any of it is read."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in _ENCODINGS:
        raise InvalidRequestError(
            f"{encoding} is not decoded here; send the body as it is, or as gzip", field="Content-Encoding"
        )
    if (request.content_length or 0) > max_bytes:
        raise too_large(max_bytes)


async def read_body(request: web.Request, max_bytes: int, pace: Pace | None = None) -> bytes:
    """Return the whole body; raises `BodyTooLargeError` or `BodyTooSlowError` as soon as it breaks a limit."""
    stream = CappedStream(request.content, max_bytes, pace)
    chunks: list[bytes] = []
    while chunk := await stream.read(_CHUNK_BYTES):
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(max_bytes: int) -> BodyTooLargeError:
    """Build the error of a body over the limit."""
    return BodyTooLargeError(f"the request's body has more than {max_bytes} bytes")


class CappedStream:
    """A request's body with limits on the bytes read in all, and on how long they are waited for."""

    def __init__(self, stream: StreamReader, max_bytes: int, pace: Pace | None = None) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._pace = pace
        self._num_read = 0
        self._waited_s = pace.counted_s(0.0, 0) if pace else 0.0

    async def read(self, num_bytes: int) -> bytes:
        """Read at most `num_bytes`, nothing at the end; raises `BodyTooLargeError` or `BodyTooSlowError`."""
        if self._pace is None:
            content = await self._stream.read(num_bytes)
        else:
            content = await self._read_at(self._pace, num_bytes)
        self._num_read += len(content)
        if self._num_read > self._max_bytes:
            raise too_large(self._max_bytes)
        return content

    async def _read_at(self, pace: Pace, num_bytes: int) -> bytes:
        began = time.monotonic()
        left_s = pace.allowed_s(self._num_read) - self._waited_s
        try:
            async with asyncio.timeout(left_s):
                content = await self._stream.read(num_bytes)
        except TimeoutError as error:
            said = (
                f"the body did not arrive: nothing after {self._num_read} bytes for {left_s:.1f} s; {pace.describe()}"
            )
            raise BodyTooSlowError(said) from error
        waited_s = self._waited_s + time.monotonic() - began
        self._waited_s = pace.counted_s(waited_s, self._num_read + len(content))
        return content
