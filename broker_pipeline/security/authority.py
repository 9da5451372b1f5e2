"""The pipeline's own certificate authority: it signs one certificate for each host, and no other one is believed.

authority/ca.crt, ca.key ── issue(host, names) ──► ca.crt, tls.crt, tls.key of that host
stay with the operator                             both as a client and as a server
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker_pipeline.errors import CertificateError, ConfigurationError
from broker_pipeline.process.private_files import write_private
from broker_pipeline.security.certificates import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, read_pem
from broker_pipeline.security.roles import is_host_address

AUTHORITY_KEY_FILE = "ca.key"
AUTHORITY_DAYS = 3650
HOST_DAYS = 397
_CLOCK_SKEW = timedelta(days=1)
"""Clocks of hosts disagree: a certificate is good on one that is behind the operator's, too."""
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Every host is these to itself."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Certificate and key of the authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    others: tuple[x509.Certificate, ...] = ()
    """Authorities that hosts believe as well, since one follows another."""

    @classmethod
    def create(cls, *, num_days: int = AUTHORITY_DAYS, now: datetime | None = None) -> Authority:
        """Make a new one that ends after `num_days`."""
        key = ec.generate_private_key(ec.SECP256R1())
        # The digits tell it from another pipeline's: OpenSSL finds issuers by name.
        name = _name(f"broker-pipeline authority {os.urandom(4).hex()}")
        now = now or datetime.now(UTC)
        builder = _builder(name, name, key, now, now + timedelta(days=num_days))
        for extension in (x509.BasicConstraints(ca=True, path_length=0), _usage(of_authority=True)):
            builder = builder.add_extension(extension, critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Read `directory`/ca.crt, of which the first is this one, and ca.key. Raises `CertificateError`."""
        certificate, *others = read_pem(directory / AUTHORITY_FILE)
        path = directory / AUTHORITY_KEY_FILE
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise CertificateError(f"{path} cannot be read as the authority's key: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise CertificateError(f"{path} is not the key of {directory / AUTHORITY_FILE}: one of them is another's")
        return cls(certificate, key, tuple(others))

    def write(self, directory: Path) -> None:
        """Write `directory`/ca.crt and ca.key, which only this user can read."""
        _write(directory, {AUTHORITY_KEY_FILE: _key_pem(self.key), AUTHORITY_FILE: self._believed()})

    def issue(
        self,
        directory: Path,
        host: str,
        names: Iterable[str],
        *,
        num_days: int = HOST_DAYS,
        now: datetime | None = None,
    ) -> None:
        """Write ca.crt, tls.crt and tls.key of a host to `directory`, in place of those before.

        `host` is what people call it; `names` are host names and IP addresses at which others reach it, without which
        `host` is its name. Raises `ConfigurationError` for what is none.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        said = dict.fromkeys((*(names or (host,)), *_LOOPBACK_NAMES))
        now = now or datetime.now(UTC)
        ends_at = min(now + timedelta(days=num_days), self.certificate.not_valid_after_utc)
        builder = _builder(_name(host), self.certificate.subject, key, now, ends_at)
        for extension, is_critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(of_authority=False), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectAlternativeName([_alternative_name(each) for each in said]), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical=is_critical)
        certificate = _pem(builder.sign(self.key, hashes.SHA256()))
        _write(directory, {AUTHORITY_FILE: self._believed(), KEY_FILE: _key_pem(key), CERTIFICATE_FILE: certificate})

    def _believed(self) -> str:
        return "".join(map(_pem, (self.certificate, *self.others)))


def _write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in files.items():
        write_private(directory / name, text)


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, ends_at: datetime
) -> x509.CertificateBuilder:
    public_key = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(ends_at)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:
        raise ConfigurationError(f"{text!r} cannot be the name of a host: {error}", field="host") from error


def _alternative_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError as error:
        if is_host_address(text):
            return x509.DNSName(text)
        raise ConfigurationError(f"{text!r} is neither a host's name nor an IP address", field="address") from error


def _usage(*, of_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_authority,
        key_cert_sign=of_authority,
        crl_sign=of_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
