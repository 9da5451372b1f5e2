"""What this host's secrets let the doctor ask, and whether its certificate is good."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.security.certificate_ends import end_warning, renewal
from broker_pipeline.security.certificates import HostCertificate
from broker_pipeline.security.credentials import Credentials, load_credentials
from broker_pipeline.security.host_folder import roles_in
from broker_pipeline.security.roles import Role
from broker_pipeline.tools.doctor.finding import Finding, ok, warn

SEERS: tuple[Role, ...] = ("gateway", "conductor", "operator", "stage", "vision")
"""Roles, those that may ask most first."""
SENDERS: tuple[Role, ...] = ("stage", "vision")
"""Roles that may ask workers for edges."""


def credentials_of(folder: str | None, namespace: str, roles: tuple[Role, ...] = SEERS) -> Credentials | None:
    """Return those of the first of `roles` that a host has secrets of, of the first at all where it has none of them.

    None without a folder. Raises `SecretsError`.
    """
    here = roles_in(Path(folder)) if folder else ()
    return load_credentials(folder, next((role for role in roles if role in here), roles[0]), namespace)


def look_at_certificate(folder: Path, now: datetime) -> HostCertificate:
    """Read this host's certificate; raises `CertificateError` where it is not good at `now`."""
    certificate = HostCertificate.read(folder)
    certificate.check(now)
    return certificate


def judge_certificate(certificate: HostCertificate, now: datetime) -> Finding:
    """Say for whom a good certificate is, and when it ends."""
    if warning := certificate.warning(now):
        return warn("certificate", warning, renewal(certificate.host))
    names = ", ".join(certificate.names)
    return ok("certificate", f"of {certificate.host} ({names}), good until {certificate.ends_at:%Y-%m-%d}")


def judge_ends(records: Iterable[WorkerRecord], now: datetime) -> list[Finding]:
    """Say which certificates of other members end soon."""
    shown = {record.certificate for record in records if record.certificate is not None}
    ends = {each.host: datetime.fromtimestamp(each.ends_at, UTC) for each in shown}
    told = {host: end_warning(f"the certificate of {host}", host, at, now) for host, at in sorted(ends.items())}
    return [warn("certificate", text, renewal(host)) for host, text in told.items() if text]
