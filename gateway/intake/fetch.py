"""Fetches an image from a URL that a stranger gave: over the network, or from the directory that is open for this.

The address is checked for every socket about to be connected (see `outgoing`); redirects are followed by hand, so that
each hop is checked as a URL and as an address; bytes are counted while they arrive.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import NoReturn

import aiohttp
from yarl import URL

from broker_pipeline.errors import MediaFetchError, MediaTooLargeError, PrivateAddressError
from broker_pipeline.storage.local_file import is_file_url, read_local_file
from gateway.address_guard import AddressGuard
from gateway.intake.down_hosts import DownHosts
from gateway.intake.image_url import host_of, parse_url
from gateway.outgoing import GuardedSockets
from gateway.settings import FetchSettings

_CHUNK_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING_STATUSES = frozenset({408, 425, 429, *range(500, 600)})
_LASTING_ERRORS = (
    aiohttp.ClientResponseError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ClientSSLError,
    ValueError,
)
_LASTING_NAME_ERRORS = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_FAIL})
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}


@dataclass(slots=True)
class ByteBudget:
    """Bytes that one job may still fetch, over all of its URLs."""

    max_bytes: int
    num_spent: int = field(default=0, init=False)

    def spend(self, num_bytes: int, name: str) -> None:
        """Take `num_bytes` off; raises `MediaTooLargeError` naming the field `name` when too few are left."""
        self.num_spent += num_bytes
        if self.num_spent > self.max_bytes:
            raise MediaTooLargeError(f"the job's images have more than {self.max_bytes} bytes together", field=name)


class ImageFetcher:
    """Fetches the bytes behind http, https and file URLs; what they are is for `images` to find out."""

    def __init__(self, guard: AddressGuard, settings: FetchSettings, hosts: DownHosts) -> None:
        """Tell `hosts` which are there and which are not."""
        self._guard = guard
        self._settings = settings
        self._hosts = hosts

    async def fetch(self, url: str, budget: ByteBudget, *, max_bytes: int, name: str) -> bytes:
        """Return the bytes behind `url`, at most `max_bytes`; errors name the field `name`.

        Raises `MediaFetchError` (`retryable` where the same URL may be read later), `PrivateAddressError` or
        `MediaTooLargeError`.
        """
        fetch = _Fetch(self._guard, self._hosts, self._settings, max_bytes, budget, name)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                if is_file_url(url):
                    content = await asyncio.to_thread(self._read_file, url, max_bytes, name)
                    budget.spend(len(content), name)
                    return content
                return await fetch.follow(parse_url(url, name))
        except TimeoutError as error:
            raise fetch.passing(f"did not deliver within {self._settings.timeout_s:g} s") from error

    def _read_file(self, url: str, max_bytes: int, name: str) -> bytes:
        directory = self._settings.media_dir
        flag = "--media-roots" if "#sha256=" in url else "--media-dir"
        if directory is None:
            raise MediaFetchError(f"file: URLs are read below what {flag} names; this one is not", field=name)
        return read_local_file(url, (directory,), flag, max_bytes=max_bytes, field=name)


class _Fetch:
    """One image's way through its redirects."""

    def __init__(
        self,
        guard: AddressGuard,
        hosts: DownHosts,
        settings: FetchSettings,
        max_bytes: int,
        budget: ByteBudget,
        name: str,
    ) -> None:
        self._sockets = GuardedSockets(guard)
        self._hosts = hosts
        self._max_redirects = settings.max_redirects
        self._connect_s = settings.timeout_s / 2
        self._max_bytes = max_bytes
        self._budget = budget
        self._name = name
        self._asked: tuple[URL, float] | None = None
        """What was asked for and when, until its host answers."""

    async def follow(self, url: URL) -> bytes:
        """Return the bytes at the end of at most `max_redirects` redirects."""
        async with self._sockets.session(_HEADERS) as session:
            for _ in range(self._max_redirects + 1):
                content, url = await self._get(session, url)
                if content is not None:
                    return content
        raise MediaFetchError(f"the URL redirects more than {self._max_redirects} times", field=self._name)

    async def _get(self, session: aiohttp.ClientSession, url: URL) -> tuple[bytes | None, URL]:
        """Return the content behind `url`, or None and where to look next."""
        self._sockets.was_refused = False
        self._asked = url, time.monotonic()
        timeout = aiohttp.ClientTimeout(connect=self._connect_s)
        try:
            async with session.get(url, allow_redirects=False, timeout=timeout) as response:
                self._asked = None
                self._hosts.answered(host_of(url))
                if response.status in _REDIRECTS:
                    return None, self._next_url(response)
                return await self._read(response), url
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._explain(url, error)

    def _next_url(self, response: aiohttp.ClientResponse) -> URL:
        location = response.headers.get("Location")
        if not location:
            raise MediaFetchError(f"the URL answered {response.status} without a Location", field=self._name)
        return parse_url(location, self._name, response.url)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        self._check_head(response)
        chunks: list[bytes] = []
        num_bytes = 0
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > self._max_bytes:
                self._too_large()
            self._budget.spend(len(chunk), self._name)
            chunks.append(chunk)
        return b"".join(chunks)

    def _check_head(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise MediaFetchError(
                f"the URL answered {response.status} {response.reason or ''}".strip(),
                field=self._name,
                retryable=response.status in _PASSING_STATUSES,
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise MediaFetchError("the URL answered with compressed content, which was not asked for", field=self._name)
        if (response.content_length or 0) > self._max_bytes:
            self._too_large()

    def _too_large(self) -> NoReturn:
        raise MediaTooLargeError(f"the file behind the URL has more than {self._max_bytes} bytes", field=self._name)

    def _explain(self, url: URL, error: Exception) -> NoReturn:
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
            raise error
        if self._sockets.was_refused:
            raise PrivateAddressError(
                f"{url.host} leads to an address that is not public; `--allow-private-urls` lets networks through",
                field=self._name,
            ) from error
        said = f"cannot be fetched from: {_reason(error)}"
        if _may_pass(error):
            raise self.passing(said) from error
        raise MediaFetchError(f"{url.host} {said}", field=self._name) from error

    def passing(self, said: str) -> MediaFetchError:
        """Build the error of what may pass; where nobody had answered it is about the host, whatever was asked for."""
        if self._asked is None:
            return MediaFetchError(f"the URL {said}", field=self._name, retryable=True)
        url, began = self._asked
        host, said = host_of(url), f"{url.host} {said}"
        self._hosts.failed(host, said, began, time.monotonic())
        return MediaFetchError(said, field=self._name, retryable=True, host=host)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return error.os_error.errno not in _LASTING_NAME_ERRORS
    return not isinstance(error, _LASTING_ERRORS)


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name does not resolve" + (" at this moment" if _may_pass(error) else "")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or "no connection"
    return str(error) or type(error).__name__
