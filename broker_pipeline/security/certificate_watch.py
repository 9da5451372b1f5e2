"""Looks after a host's certificate while a service runs: takes new files, and says when the end is near.

every 10 s ── files changed? ──► reload ──► connections from now on show the new certificate
at the start, then daily ── fewer than 30 days left? ──► a warning with the host and what to do
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from broker_pipeline.errors import CertificateError
from broker_pipeline.security.tls_contexts import TlsContexts, host_tls, utc_now

log = structlog.get_logger()

LOOK_EVERY_S = 10.0
_WARN_EVERY = timedelta(days=1)


class CertificateWatch:
    """What one process says and does about its certificate."""

    def __init__(self, contexts: TlsContexts, clock: Callable[[], datetime] = utc_now) -> None:
        """`clock` is in UTC."""
        self._contexts = contexts
        self._clock = clock
        self._stamps = contexts.stamps()
        self._warn_at = clock()

    async def run(self, every_s: float = LOOK_EVERY_S) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(every_s)

    def look(self) -> None:
        """Take files that changed, and warn where it is time to."""
        stamps = self._contexts.stamps()
        if stamps and stamps != self._stamps:
            self._stamps = stamps
            self._take()
        now, certificate = self._clock(), self._contexts.certificate
        if now >= self._warn_at:
            self._warn_at = now + _WARN_EVERY
            if warning := certificate.warning(now):
                log.warning("certificate_ends_soon", host=certificate.host, reason=warning)

    def _take(self) -> None:
        try:
            self._contexts.reload(self._clock())
        except CertificateError as error:
            log.error("certificate_not_taken", reason=error.message)  # noqa: TRY400 - it says all there is to know
        else:
            self._warn_at = self._clock()
            ends_at = self._contexts.certificate.ends_at
            log.info("certificate_taken", host=self._contexts.certificate.host, ends_at=f"{ends_at:%Y-%m-%d}")


@asynccontextmanager
async def watched_certificate(secrets: str | None) -> AsyncIterator[None]:
    """Look after the certificate in a directory of secrets, where there is one, while the context is open.

    Raises `CertificateError` at once where it is not good.
    """
    contexts = host_tls(Path(secrets)) if secrets is not None else None
    if contexts is None:
        yield
        return
    task = asyncio.create_task(CertificateWatch(contexts).run(), name="certificate")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
