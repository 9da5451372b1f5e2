"""The certificates in a directory of secrets: the authority's, that of the servers, and one for each host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from broker_pipeline.security.authority import Authority
from broker_pipeline.security.certificate_ends import SERVERS
from broker_pipeline.security.certificates import CERTIFICATE_FILE, HostCertificate

_SERVER_NAMES = ("broker", "nats", "redis")
"""As containers of one host call each other, besides the addresses that are given."""


class DirectoryCertificates:
    """What `broker-pipeline secrets` does about certificates. Raises `CertificateError`, `ConfigurationError`."""

    def __init__(self, path: Path) -> None:
        """Look after the directory at `path`."""
        self._path = path

    def create(self, addresses: Sequence[str]) -> None:
        """Make the authority, and the certificate of servers that are reached at `addresses`."""
        Authority.create().write(self._path / "authority")
        self.certify_servers(addresses)

    def certify_servers(self, addresses: Sequence[str]) -> None:
        """Make a certificate of the servers at these addresses."""
        self.certify(self._path / SERVERS, SERVERS, (*_SERVER_NAMES, *addresses))

    def certify(self, folder: Path, host: str, addresses: Sequence[str]) -> None:
        """Make a certificate of a host in its folder, which may have another place yet."""
        Authority.load(self._path / "authority").issue(folder, host, addresses)

    def renew(self, host: str | None) -> list[str]:
        """Make another certificate for a host, or for all and the servers, with the names so far; return whose."""
        chosen = [each for each in self.read_all() if host in (None, each.host)]
        for each in chosen:
            self.certify(each.path.parent, each.host, each.names)
        return [each.path.parent.name for each in chosen]

    def read_all(self) -> list[HostCertificate]:
        """Return the certificates of the servers and of all hosts."""
        hosts = sorted(path.parent for path in (self._path / "hosts").glob(f"*/{CERTIFICATE_FILE}"))
        return [HostCertificate.read(folder) for folder in (self._path / SERVERS, *hosts)]
