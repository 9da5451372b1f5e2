"""What one process shows to NATS and Redis, read once from the folder of its host.

    DIR/host.json                          the host's name, and the namespace that its rights are for
    DIR/ROLE.nk  ROLE.redis                an NKey's seed, a password: for each role that this host has
    DIR/gateway.key                        key to the gateway that allows everything: gateways and operators
    DIR/ca.crt  tls.crt  tls.key           for TLS

`broker-pipeline secrets` makes it, and `roles` says what each role may do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec

from broker_pipeline.errors import SecretsError
from broker_pipeline.messages.base import Name
from broker_pipeline.security.roles import Host, Role, inbox_prefix, redis_user, worker_prefix

HOST_FILE = "host.json"
GATEWAY_KEY = "gateway.key"


class HostFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `host.json` says."""

    host: Host
    namespace: Name


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a process of one role on one host has."""

    role: Role
    host: str
    namespace: str
    directory: Path
    """The folder that they were read from; certificates are in it as well."""
    nkey_seed: str = field(repr=False)
    redis_password: str = field(repr=False)

    @classmethod
    def load(cls, directory: Path, role: Role, namespace: str) -> Self:
        """Read a role's files; raises `SecretsError` for what is missing, unreadable, or for another namespace."""
        facts = _host_facts(directory)
        if facts.namespace != namespace:
            raise SecretsError(
                f"{directory} is for namespace {facts.namespace}, and this process is of {namespace}: give it "
                f"--namespace {facts.namespace}, or secrets of its own"
            )
        seed, password = (_read(directory / f"{role}.{kind}", role) for kind in ("nk", "redis"))
        return cls(role, facts.host, facts.namespace, directory, seed, password)

    @property
    def nats_options(self) -> dict[str, Any]:
        """Return what nats-py's `connect` takes."""
        return {"nkeys_seed_str": self.nkey_seed, "inbox_prefix": inbox_prefix(self.role, self.host)}

    @property
    def redis_options(self) -> dict[str, Any]:
        """Return what redis-py's connections take."""
        return {"username": redis_user(self.role, self.host), "password": self.redis_password}

    def worker_name(self, name: str) -> str:
        """Return a worker's name as this host may take it: it begins with the host's."""
        prefix = worker_prefix(self.host)
        return name if name.startswith(prefix) else prefix + name


def load_credentials(directory: str | Path | None, role: Role, namespace: str) -> Credentials | None:
    """Return a role's credentials; None without a directory: servers then let everybody in."""
    return None if directory is None else Credentials.load(Path(directory), role, namespace)


def gateway_key(directory: Path) -> str:
    """Return the key to the gateway; raises `SecretsError` where this host has none."""
    return _read(directory / GATEWAY_KEY, "operator")


def _host_facts(directory: Path) -> HostFacts:
    path = directory / HOST_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=HostFacts)
    except FileNotFoundError as error:
        raise SecretsError(
            f"{directory} is no folder of a host's secrets, as `broker-pipeline secrets add-host` makes them in "
            f"DIR/hosts/: it has no {HOST_FILE}"
        ) from error
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise SecretsError(f"{path} cannot be used: {error}") from error


def _read(path: Path, role: Role) -> str:
    try:
        text = path.read_text("ascii").strip()
    except FileNotFoundError as error:
        raise SecretsError(
            f"{path} is missing: this host has no secrets of a {role}; `broker-pipeline secrets add-host HOST --role "
            f"{role}` makes them"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SecretsError(f"{path} cannot be read: {error}") from error
    if not text:
        raise SecretsError(f"{path} is empty: `broker-pipeline secrets rotate` makes it anew")
    return text
