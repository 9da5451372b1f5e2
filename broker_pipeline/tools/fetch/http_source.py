"""An artifact behind a web server: any that serves files, better one that knows `Range`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
from yarl import URL

from broker_pipeline.artifact_files.contents import FileContent
from broker_pipeline.errors import ConfigurationError, FetchError, FetchInterruptedError
from broker_pipeline.tools.fetch.source import Stream, check_size, missing

_BUFFER_BYTES = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
_MAX_REDIRECTS = 5
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class HttpSource:
    """Files below a URL. Made by `opened`."""

    def __init__(self, url: URL, session: aiohttp.ClientSession) -> None:
        """Read what lies below `url`."""
        self._url = url
        self._session = session

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncIterator[HttpSource]:
        """Yield a source that reuses its connections; `ConfigurationError` for what is no URL of a web server."""
        try:
            base = URL(url)
        except ValueError as error:
            raise ConfigurationError(f"FROM is no URL: {error}", field="FROM") from error
        if base.scheme not in ("http", "https") or not base.host or base.query_string or base.fragment:
            raise ConfigurationError(
                "FROM is a directory, or a URL such as http://HOST/artifacts/8b, without a query", field="FROM"
            )
        # Compressed, a file would have neither its size nor ranges.
        headers = {"Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(
            headers=headers, timeout=_TIMEOUT, read_bufsize=_BUFFER_BYTES, trust_env=True, auto_decompress=False
        ) as session:
            yield cls(base, session)

    def __str__(self) -> str:
        return str(self._url.with_user(None))

    async def read_small(self, name: str, max_bytes: int) -> bytes:
        """Return a whole small file; see `Source`."""
        read = bytearray()
        async with self._get(name, {}) as answer:
            async for piece in answer.content.iter_any():
                read += piece
                if len(read) > max_bytes:
                    raise FetchError(f"{self}: what comes as {name} is longer than {max_bytes} bytes", field=name)
        return bytes(read)

    @asynccontextmanager
    async def reading(self, content: FileContent, start: int) -> AsyncIterator[Stream]:
        """Return the bytes of a file, from `start` on where the server knows `Range`; see `Source`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self._get(content.name, headers) as answer:
            begins_at, size_bytes = self._extent(answer, content, start)
            if size_bytes is not None:
                check_size(content, size_bytes, str(self))
            yield Stream(begins_at, answer.content.iter_any())

    @asynccontextmanager
    async def _get(self, name: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        url = self._url / name
        with self._http_errors(name):
            async with self._session.get(url, headers=headers, max_redirects=_MAX_REDIRECTS) as answer:
                self._check(answer, name)
                yield answer

    def _check(self, answer: aiohttp.ClientResponse, name: str) -> None:
        if self._url.scheme == "https" and answer.url.scheme != "https":
            raise FetchError(f"{self}: {name} is redirected from https to {answer.url.scheme}", field=name)
        if answer.status in (404, 410):
            raise missing(name, str(self))
        if answer.status in (401, 403):
            raise FetchError(
                f"{self} does not give {name} to us (HTTP {answer.status}); https://USER:PASSWORD@HOST/… says who asks",
                field=name,
            )
        if answer.status in _LATER:
            raise FetchInterruptedError(f"{self} answers HTTP {answer.status} for {name}", field=name)
        if answer.status not in (200, 206):
            raise FetchError(f"{self} answers HTTP {answer.status} for {name}", field=name)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise FetchError(f"{self} sends {name} compressed, which was not asked for", field=name)

    def _extent(self, answer: aiohttp.ClientResponse, content: FileContent, start: int) -> tuple[int, int | None]:
        """Return where an answer begins in its file, and the file's size where the server says it."""
        if answer.status == 200:  # also where a part was asked for, of a server that gives none
            return 0, answer.content_length
        part = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if part is None or int(part[1]) != start:
            raise FetchError(f"{self} sends another part of {content.name} than was asked for", field=content.name)
        return start, None if part[2] == "*" else int(part[2])

    @contextmanager
    def _http_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except aiohttp.TooManyRedirects as error:
            raise FetchError(f"{self}: {name} is redirected more than {_MAX_REDIRECTS} times", field=name) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise FetchError(f"{self}: {name} is redirected to what is no web server: {error}", field=name) from error
        except aiohttp.ClientSSLError as error:
            raise FetchError(f"{self}: no encrypted connection: {error}", field=name) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
            raise FetchInterruptedError(f"{self}: {name} cannot be read: {reason}", field=name) from error
