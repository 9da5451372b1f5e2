"""What one process shows to NATS and Redis, read once from the folder of its host (see `host_folder`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from broker_pipeline.errors import SecretsError
from broker_pipeline.security.host_folder import GATEWAY_KEY, public_key, read_facts, read_secret
from broker_pipeline.security.roles import Role, inbox_prefix, redis_user, worker_prefix
from broker_pipeline.security.tls_contexts import TlsContexts, host_tls


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process of one role on one host has."""

    role: Role
    host: str
    directory: Path
    """The folder that they were read from; certificates are in it as well."""
    nkey_seed: str = field(repr=False)
    redis_password: str = field(repr=False)

    @classmethod
    def load(cls, directory: Path, role: Role, namespace: str) -> Self:
        """Read a role's files; raises `SecretsError` for what is missing, unreadable, or for another namespace."""
        facts = read_facts(directory)
        if facts.namespace != namespace:
            raise SecretsError(
                f"{directory} is for namespace {facts.namespace}, and this process is of {namespace}: give it "
                f"--namespace {facts.namespace}, or secrets of its own"
            )
        seed, password = (read_secret(directory / f"{role}.{kind}") for kind in ("nk", "redis"))
        try:
            public_key(seed)
        except ValueError as error:
            raise SecretsError(f"{directory / role}.nk is no seed of an NKey: {error}") from error
        return cls(role, facts.host, directory, seed, password)

    @property
    def tls(self) -> TlsContexts | None:
        """How this host encrypts; None for `up`, whose servers are on the loopback interface."""
        return host_tls(self.directory)

    @property
    def nats_options(self) -> dict[str, Any]:
        """Return what nats-py's `connect` takes."""
        encrypted = {"tls": self.tls.client} if self.tls else {}
        return {"nkeys_seed_str": self.nkey_seed, "inbox_prefix": inbox_prefix(self.role, self.host), **encrypted}

    @property
    def redis_options(self) -> dict[str, Any]:
        """Return what redis-py's connections take."""
        return {"username": redis_user(self.role, self.host), "password": self.redis_password}


def load_credentials(directory: str | Path | None, role: Role, namespace: str) -> Credentials | None:
    """Return a role's credentials; None without a directory: servers then let everybody in."""
    return None if directory is None else Credentials.load(Path(directory), role, namespace)


def own_worker_name(directory: str | Path | None, name: str) -> str:
    """Return a worker's name as its host may take it: with secrets, it begins with the host's."""
    prefix = "" if directory is None else worker_prefix(read_facts(Path(directory)).host)
    return name if name.startswith(prefix) else prefix + name


def gateway_key_file(directory: str | Path | None) -> str | None:
    """Return where the key to the gateway is; None without a directory. Raises `SecretsError` where it has none."""
    if directory is None:
        return None
    path = Path(directory) / GATEWAY_KEY
    read_secret(path)
    return str(path)
