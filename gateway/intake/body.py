"""Reads request bodies under the gateway's own limit, whatever the client says about their length."""

from __future__ import annotations

from aiohttp import StreamReader, web

from broker_pipeline.errors import BodyTooLargeError, InvalidRequestError

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


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """Return the whole body; raises `BodyTooLargeError` as soon as it has more than `max_bytes`."""
    stream = CappedStream(request.content, max_bytes)
    chunks: list[bytes] = []
    while chunk := await stream.read(_CHUNK_BYTES):
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(max_bytes: int) -> BodyTooLargeError:
    """Build the error of a body over the limit."""
    return BodyTooLargeError(f"the request's body has more than {max_bytes} bytes")


class CappedStream:
    """A request's body with a limit on the bytes read in all."""

    def __init__(self, stream: StreamReader, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._num_read = 0

    async def read(self, num_bytes: int) -> bytes:
        """Read at most `num_bytes`, nothing at the end; raises `BodyTooLargeError` beyond the limit."""
        content = await self._stream.read(num_bytes)
        self._num_read += len(content)
        if self._num_read > self._max_bytes:
            raise too_large(self._max_bytes)
        return content
