"""How a host encrypts: contexts made from its directory of secrets, which take new files without a restart.

    client          to NATS and Redis    their certificate is of the authority, and for the name in their URL
    edge_listener   from other workers   theirs is of the authority, and the one that they announced
    edge_dialer     to other workers     the same

Each shows the host's own certificate. Everything speaks TLS 1.3.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import msgspec

from broker_pipeline.errors import CertificateError
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.security.certificates import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, HostCertificate


class TlsContexts:
    """The contexts of one process. Whoever has one keeps it: it is the same after `reload`, with other contents."""

    def __init__(self, directory: Path, now: datetime) -> None:
        """Make them from a host's files. Raises `CertificateError` where these are not good at `now`, in UTC."""
        self.client, self.edge_dialer = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2))
        self.edge_dialer.check_hostname = False  # of whoever listens, the certificate itself is known
        self.edge_listener = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.edge_listener.verify_mode = ssl.CERT_REQUIRED
        self.edge_listener.num_tickets = 0  # nobody comes back with one
        self._directory = directory
        self.servers_end_at: datetime | None = None
        """When the servers' certificate ends, as far as it is known."""
        self.reload(now)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate that is shown, in hexadecimal digits."""
        return self.certificate.fingerprint

    def reload(self, now: datetime) -> None:
        """Take the files as they are, for connections from now on. Raises `CertificateError`, and changes nothing then.

        An authority that was believed so far remains so until the process ends.
        """
        certificate = HostCertificate.read(self._directory)
        certificate.check(now)
        try:
            for context in (self.client, self.edge_listener, self.edge_dialer):
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.load_verify_locations(self._directory / AUTHORITY_FILE)
                context.load_cert_chain(self._directory / CERTIFICATE_FILE, self._directory / KEY_FILE)
        except OSError as error:  # OpenSSL's are among these: files that change at this moment
            raise CertificateError(f"{self._directory} cannot be taken as it is now: {error}") from error
        self.certificate = certificate
        """What the files said when they were taken last."""

    def stamps(self) -> tuple[tuple[int, int], ...]:
        """Return what changes when the files do; empty where one is missing, as while they are being replaced."""
        try:
            found = [(self._directory / name).stat() for name in (AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE)]
        except OSError:
            return ()
        return tuple((each.st_mtime_ns, each.st_ino) for each in found)


def utc_now() -> datetime:
    """Return the time by which certificates are judged."""
    return datetime.now(UTC)


def host_tls(directory: Path) -> TlsContexts | None:
    """Return this process's contexts for a host's directory; None where that has no certificate, as that of `up`.

    Raises `CertificateError` where it has one that is not good now.
    """
    names = (AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE)
    return _contexts(directory) if any((directory / name).exists() for name in names) else None


def secrets_tls(secrets: str | None) -> TlsContexts | None:
    """Return this process's contexts for what `--secrets` names; see `host_tls`."""
    return None if secrets is None else host_tls(Path(secrets))


def with_certificate(record: WorkerRecord, contexts: TlsContexts | None) -> WorkerRecord:
    """Return a record with the certificate that its process shows now."""
    return record if contexts is None else msgspec.structs.replace(record, certificate=contexts.certificate.record)


@cache  # so that all that a process connects follows new files
def _contexts(directory: Path) -> TlsContexts:
    return TlsContexts(directory, utc_now())
