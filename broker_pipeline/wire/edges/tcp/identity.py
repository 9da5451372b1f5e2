"""Who a process is on its `tcp` edges: its host by the authority's word, or a key and certificate of its own making.

The certificate's SHA-256 goes with every offer over NATS, and who dials accepts that one and no other. With `--secrets`
both ends hold certificates of the authority, and the asking side announces its own as well. Without, the listener makes
one at its start and never writes it down, the dialer has none: an edge is then as trustworthy as the broker that
introduced its ends, and nobody has anything to set up.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from broker_pipeline.errors import EdgeLostError

_VALID_FOR = timedelta(days=3650)


class EdgeIdentity(Protocol):
    """What the ends of edges encrypt with, as it is now: `security.tls_contexts` has one that changes."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate that is shown, in hexadecimal digits."""

    @property
    def edge_listener(self) -> ssl.SSLContext:
        """What a listener encrypts with."""

    @property
    def edge_dialer(self) -> ssl.SSLContext:
        """What a dialer encrypts with; it does not look at names: ask `check_certificate` afterwards."""


class Identity:
    """A certificate, its key, and its fingerprint."""

    def __init__(self) -> None:
        """Make a new one: about a tenth of a millisecond."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker-pipeline edge")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _VALID_FOR)  # clocks of hosts disagree, and only the fingerprint counts
            .not_valid_after(now + _VALID_FOR)
            .sign(key, hashes.SHA256())
        )
        self.fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
        """SHA-256 of the certificate, in hexadecimal digits."""
        self._pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @cached_property
    def edge_listener(self) -> ssl.SSLContext:
        """What a listener encrypts with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # nobody comes back with one
        _load(context, self._pem)
        return context

    @property
    def edge_dialer(self) -> ssl.SSLContext:
        """What a dialer encrypts with."""
        return dialing_context()


def dialing_context() -> ssl.SSLContext:
    """Return what a dialer encrypts with. It accepts any certificate: ask `check_certificate` afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_certificate(encrypted: ssl.SSLObject, fingerprint: str, host: str | None = None) -> None:
    """Raise `EdgeLostError` where the other side's certificate is not the one of that fingerprint, and of that host."""
    if not hmac.compare_digest(shown_certificate(encrypted), fingerprint):
        raise EdgeLostError("somebody else answers there: the certificate is not the one that was announced")
    if host is not None and vouched_host(encrypted) != host:
        raise EdgeLostError(f"the certificate is of {vouched_host(encrypted)!r}, and the worker is one of {host!r}")


def shown_certificate(encrypted: ssl.SSLObject) -> str:
    """Return the SHA-256 of the other side's certificate; nothing where it shows none."""
    certificate = encrypted.getpeercert(binary_form=True)
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def vouched_host(encrypted: ssl.SSLObject) -> str:
    """Return whose certificate the other side shows, by the word of the authority that was asked for it."""
    certificate = cast("dict[str, Any]", encrypted.getpeercert() or {})
    return next(
        (value for names in certificate.get("subject", ()) for name, value in names if name == "commonName"), ""
    )


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Load a certificate and its key, which `ssl` takes from files only: from one in memory, where there are."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("edge"), "wb", buffering=0) as file:
            file.write(pem)
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "edge.pem")
        path.write_bytes(pem)
        context.load_cert_chain(path)
