"""Asks again for pictures of a line whose server has a bad moment, and not for each line anew while it is down.

no answer of a host for 20 s ──► of its lines one tries, once; the others wait for what comes of it,
                                 and fail as it does or, once the host answers, ask for their own
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from broker_pipeline.errors import MediaFetchError
from gateway.intake.down_hosts import DownHosts
from gateway.intake.image_url import host_of_link
from gateway.intake.job_draft import JobDraft, Link

_WAITS_S = (1.0, 4.0, 16.0)

T = TypeVar("T")

log = structlog.get_logger()


class PictureRetries:
    """The tries of one process."""

    def __init__(self, hosts: DownHosts, clock: Callable[[], float] = time.monotonic) -> None:
        """`hosts` is what fetches tell of hosts, by the same clock."""
        self._hosts = hosts
        self._clock = clock
        self._probes: dict[str, asyncio.Event] = {}

    async def get(self, draft: JobDraft, fetch: Callable[[], Awaitable[T]], request: str) -> T:
        """Return what `fetch` makes of a draft's pictures; `request` is its name in the log.

        Raises the last `MediaFetchError`, and whatever else `fetch` raises.
        """
        for wait_s in _WAITS_S:
            try:
                return await self._once(draft, fetch)
            except MediaFetchError as error:
                if not error.retryable or (error.host and self._hosts.is_down(error.host, self._clock())):
                    raise
                log.info("batch_picture_asked_again", request=request, reason=error.message, wait_s=wait_s)
            await asyncio.sleep(wait_s)
        return await self._once(draft, fetch)

    async def _once(self, draft: JobDraft, fetch: Callable[[], Awaitable[T]]) -> T:
        """Fetch, or wait for somebody who tries already. Raises as `get` does."""
        came_at = self._clock()
        while (down := self._down(draft)) is not None:
            host, field = down
            if (reason := self._hosts.failure(host, came_at, self._clock())) is not None:
                raise MediaFetchError(reason, field=field, retryable=True, host=host)
            if (probe := self._probes.get(host)) is None:
                return await self._probe(host, fetch)
            await probe.wait()
        return await fetch()

    async def _probe(self, host: str, fetch: Callable[[], Awaitable[T]]) -> T:
        self._probes[host] = over = asyncio.Event()
        try:
            return await fetch()
        finally:
            del self._probes[host]
            over.set()

    def _down(self, draft: JobDraft) -> tuple[str, str] | None:
        """Return a host that is down of those which a draft names, and the field that names it."""
        if not self._hosts:
            return None
        now = self._clock()
        for source in draft.sources:
            host = host_of_link(source.url) if isinstance(source, Link) else None
            if host is not None and self._hosts.is_down(host, now):
                return host, source.field
        return None
