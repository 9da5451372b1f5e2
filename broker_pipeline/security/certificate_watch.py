"""Looks after certificates while a service runs: takes this host's new files, and says when an end is near.

every 10 s ── files changed? ──► reload ──► connections from now on show the new certificate
at the start, then daily ── fewer than 30 days left, here or at the servers? ──► a warning with the host and what to do
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import structlog

from broker_pipeline.errors import CertificateError
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.security.certificate_ends import SERVERS, end_warning
from broker_pipeline.security.tls_contexts import TlsContexts, secrets_tls, utc_now

log = structlog.get_logger()

_LOOK_EVERY_S = 10.0
_ASK_EVERY = timedelta(minutes=10)
_WARN_EVERY = timedelta(days=1)

ServersEnd = Callable[[ssl.SSLContext], Awaitable[datetime | None]]
"""When the certificate ends that the servers show now; None where they cannot be asked."""


class CertificateWatch:
    """What one process says and does about certificates."""

    def __init__(self, contexts: TlsContexts, servers_end: ServersEnd, clock: Callable[[], datetime] = utc_now) -> None:
        """`clock` is in UTC."""
        self._contexts, self._servers_end = contexts, servers_end
        self._clock = clock
        self._stamps = contexts.stamps()
        self._ask_at = clock()
        self._warn_at: dict[str, datetime] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Take files that changed, ask the servers, and warn where it is time to."""
        stamps = self._contexts.stamps()
        if stamps and stamps != self._stamps:
            self._stamps = stamps
            self._take()
        certificate, now = self._contexts.certificate, self._clock()
        self._warn(certificate.host, str(certificate.path), certificate.ends_at)
        if now >= self._ask_at and (ends_at := await self._servers_end(self._contexts.client)) is not None:
            self._ask_at = now + _ASK_EVERY
            self._contexts.servers_end_at = ends_at
            self._warn(SERVERS, "the certificate of the NATS server", ends_at)

    def _take(self) -> None:
        try:
            self._contexts.reload(self._clock())
        except CertificateError as error:
            log.error("certificate_not_taken", reason=error.message)  # noqa: TRY400 - it says all there is to know
        else:
            certificate = self._contexts.certificate
            log.info("certificate_taken", host=certificate.host, ends_at=f"{certificate.ends_at:%Y-%m-%d}")

    def _warn(self, host: str, what: str, ends_at: datetime) -> None:
        now = self._clock()
        warning = end_warning(what, host, ends_at, now)
        if warning is not None and now >= self._warn_at.get(host, now):
            self._warn_at[host] = now + _WARN_EVERY
            log.warning("certificate_ends_soon", host=host, reason=warning)


@asynccontextmanager
async def watched_certificates(secrets: str | None, servers_end: ServersEnd) -> AsyncIterator[None]:
    """Look after the certificate in a host's folder, where there is one, and the servers', while the context is open.

    Raises `CertificateError` at once where this host's is not good.
    """
    contexts = secrets_tls(secrets)
    if contexts is None:
        yield
        return
    with raising_first_error():
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(CertificateWatch(contexts, servers_end).run(), name="certificates")
            yield
            watching.cancel()


def certificate_ends(secrets: str | None, records: Iterable[WorkerRecord]) -> dict[str, float]:
    """Return until when the certificates of hosts are good, in seconds since 1970.

    This process's, the servers' as they were asked last, and those of others by their `records`: the first of a host.
    """
    contexts = secrets_tls(secrets)
    shown = [(each.certificate.host, each.certificate.ends_at) for each in records if each.certificate is not None]
    if contexts is not None:
        shown.append((contexts.certificate.host, contexts.certificate.ends_at.timestamp()))
        if contexts.servers_end_at is not None:
            shown.append((SERVERS, contexts.servers_end_at.timestamp()))
    return dict(sorted(shown, key=lambda each: (each[0], -each[1])))
