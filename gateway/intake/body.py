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
    """The part of `aiohttp.StreamReader` that a multipart reader needs, with a limit on the bytes read in all."""

    def __init__(self, stream: StreamReader, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._num_read = 0
        self._returned = b""

    async def read(self, num_bytes: int) -> bytes:
        """Read at most `num_bytes`."""
        if self._returned:
            content, self._returned = self._returned[:num_bytes], self._returned[num_bytes:]
            return content
        return self._count(await self._stream.read(num_bytes))

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """Read one line, its end included."""
        line, newline, rest = self._returned.partition(b"\n")
        self._returned = rest
        if newline:
            return line + newline
        return line + self._count(await self._stream.readline(max_line_length=max_line_length))

    def unread_data(self, content: bytes) -> None:
        """Unread bytes."""
        self._returned = content + self._returned

    def at_eof(self) -> bool:
        """Say whether everything was read."""
        return not self._returned and self._stream.at_eof()

    def _count(self, content: bytes) -> bytes:
        self._num_read += len(content)
        if self._num_read > self._max_bytes:
            raise too_large(self._max_bytes)
        return content
