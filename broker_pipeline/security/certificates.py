"""The certificate by which a host is known, as it lies in its directory of secrets: whose it is, and until when.

DIR/ca.crt    who signs; may hold several, so that one authority can follow another
DIR/tls.crt   this host, for servers and peers alike
DIR/tls.key   its key
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from broker_pipeline.errors import CertificateError
from broker_pipeline.messages.workers import CertificateRecord
from broker_pipeline.security.certificate_ends import end_warning, renewal

AUTHORITY_FILE = "ca.crt"
CERTIFICATE_FILE = "tls.crt"
KEY_FILE = "tls.key"


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """What a host's certificate says."""

    path: Path
    host: str
    """What people call the host."""
    names: tuple[str, ...]
    """At which others reach it: host names and IP addresses."""
    fingerprint: str
    """SHA-256, in hexadecimal digits."""
    starts_at: datetime
    ends_at: datetime
    """When it, or its authority, is good no more."""

    @classmethod
    def read(cls, directory: Path) -> HostCertificate:
        """Read it from a host's directory of secrets.

        Raises `CertificateError` where a file is missing or cannot be read, the key is another's, or no authority in
        ca.crt has signed it. Whether it is good at this time, `check` says.
        """
        path = directory / CERTIFICATE_FILE
        certificate, *_ = read_pem(path)
        authority = _authority_of(certificate, read_pem(directory / AUTHORITY_FILE))
        host = _host_of(certificate)
        if authority is None:
            raise CertificateError(f"{path} is not signed by {directory / AUTHORITY_FILE}: {renewal(host)}")
        _check_key(directory / KEY_FILE, certificate, host)
        return cls(
            path,
            host,
            _names_of(certificate),
            certificate.fingerprint(hashes.SHA256()).hex(),
            max(certificate.not_valid_before_utc, authority.not_valid_before_utc),
            min(certificate.not_valid_after_utc, authority.not_valid_after_utc),
        )

    def check(self, now: datetime) -> None:
        """Raise `CertificateError` where it is not good at `now`, which is in UTC."""
        if now >= self.ends_at:
            raise CertificateError(f"{self.path} ended on {self.ends_at:%Y-%m-%d}: {renewal(self.host)}")
        if now < self.starts_at:
            raise CertificateError(
                f"{self.path} is good from {self.starts_at:%Y-%m-%d} on and this host's clock says {now:%Y-%m-%d}: "
                "set the clock"
            )

    def warning(self, now: datetime) -> str | None:
        """Return what to say of its end where that is near."""
        return end_warning(str(self.path), self.host, self.ends_at, now)

    @property
    def record(self) -> CertificateRecord:
        """What others are told of it."""
        return CertificateRecord(host=self.host, fingerprint=self.fingerprint, ends_at=self.ends_at.timestamp())


def read_pem(path: Path) -> Sequence[x509.Certificate]:
    """Return the certificates in a file, at least one; `CertificateError` that names it."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise CertificateError(
            f"{path} cannot be read ({error.strerror}): --secrets names the directory that `broker-pipeline secrets "
            "add-host` made for this host"
        ) from error
    except ValueError as error:
        raise CertificateError(f"{path} is no certificate: copy it again ({error})") from error


def _authority_of(certificate: x509.Certificate, known: Sequence[x509.Certificate]) -> x509.Certificate | None:
    for authority in known:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return authority
    return None


def _check_key(path: Path, certificate: x509.Certificate, host: str) -> None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise CertificateError(f"{path} cannot be read as a key ({error}): {renewal(host)}") from error
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{path} is not the key of {path.with_name(CERTIFICATE_FILE)}: {renewal(host)}")


def _host_of(certificate: x509.Certificate) -> str:
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(each.value) for each in names if isinstance(each, x509.DNSName | x509.IPAddress))
