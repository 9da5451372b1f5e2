"""All secrets of a pipeline in one directory: made once, added to host by host, and renewed.

    DIR/secrets.json      what it is for
    DIR/authority/        what stays here: whoever has it can make more
    DIR/servers/          for the host of NATS and Redis: who may do what; passwords are hashed, NKeys public
    DIR/hosts/HOST/       for this host (see `host_folder`)

Hosts' folders are the truth: the servers' files are made of them anew whenever one changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_pipeline.errors import SecretsError
from broker_pipeline.messages.base import Name
from broker_pipeline.process.private_files import new_private_directory, write_private
from broker_pipeline.security.directory_certificates import DirectoryCertificates
from broker_pipeline.security.host_folder import (
    GATEWAY_KEY,
    HOST_FILE,
    KEY_ROLES,
    HostFacts,
    new_password,
    roles_in,
    users_in,
    write_facts,
    write_roles,
)
from broker_pipeline.security.roles import LOCAL_HOST, ROLES, Host, Role
from broker_pipeline.security.server_configs import ServerAccess, nats_config, redis_config

SERVERS_AT = "/etc/broker-pipeline"
_FACTS = "secrets.json"


class DirectoryFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `secrets.json` says."""

    namespace: Name
    servers_at: Annotated[str, Meta(pattern=r"^/[^\s\"']*$")] = SERVERS_AT
    """Where the servers' host has the folder `servers`."""


class SecretsDirectory:
    """The directory of one pipeline, on the operator's machine. Every method raises `SecretsError`."""

    def __init__(self, path: Path) -> None:
        """Open a directory that `create` has made."""
        self.path = path
        try:
            self.facts = msgspec.json.decode((path / _FACTS).read_bytes(), type=DirectoryFacts)
        except FileNotFoundError as error:
            reason = f"{path} holds no secrets: `broker-pipeline secrets init {path}` makes them"
            raise SecretsError(reason, field="DIR") from error
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise SecretsError(f"{path / _FACTS} cannot be used: {error}", field="DIR") from error

    @classmethod
    def create(cls, path: Path, facts: DirectoryFacts, addresses: Sequence[str] = ()) -> SecretsDirectory:
        """Make the directory; one that is there and for the same is left as it is.

        `addresses` are those of the servers; where they are given again, these get another certificate.
        """
        if (path / _FACTS).exists():
            return cls._existing(path, facts, addresses)
        with _errors_of(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise SecretsError(f"{path} holds something else: choose another directory", field="DIR")
            with new_private_directory(path) as partial:
                for folder in ("authority", "servers", "hosts"):
                    (partial / folder).mkdir(mode=0o700)
                _write_gateway_key(partial)
                DirectoryCertificates(partial).create(addresses)
                write_private(partial / _FACTS, msgspec.json.encode(facts).decode())
                _write_servers(partial, facts)
        return cls(path)

    @classmethod
    def _existing(cls, path: Path, facts: DirectoryFacts, addresses: Sequence[str]) -> SecretsDirectory:
        found = cls(path)
        if found.facts != facts:
            raise SecretsError(
                f"{path} is for namespace {found.facts.namespace} and servers that have it at "
                f"{found.facts.servers_at}; nothing was changed: choose another directory",
                field="DIR",
            )
        if addresses:
            found.certificates.certify_servers(addresses)
        return found

    @property
    def certificates(self) -> DirectoryCertificates:
        """The certificates in it."""
        return DirectoryCertificates(self.path)

    @property
    def hosts(self) -> dict[str, tuple[Role, ...]]:
        """What each host has secrets for."""
        return {folder.name: roles_in(folder) for folder in _host_folders(self.path)}

    def host_folder(self, host: str) -> Path:
        """Return what is to be copied to a host."""
        return self.path / "hosts" / host

    def add_host(self, host: str, roles: Collection[Role], addresses: Sequence[str] = ()) -> list[Role]:
        """Make secrets of a host for these roles; return those that it did not have yet. Others stay as they are.

        Its certificate is for its name and `addresses`; where they are given again, it gets another one.
        """
        folder = self.host_folder(_checked_name(host))
        had = roles_in(folder)
        new = [role for role in ROLES if role in roles and role not in had]
        with _errors_of(folder):
            if folder.exists():
                if addresses:
                    self.certificates.certify(folder, host, (host, *addresses))
                self._write_roles(folder, new)
            else:
                with new_private_directory(folder) as partial:
                    write_facts(partial, HostFacts(host, self.facts.namespace))
                    self.certificates.certify(partial, host, (host, *addresses))
                    self._write_roles(partial, new)
            _write_servers(self.path, self.facts)
        return new

    def rotate(self, host: str, roles: Collection[Role] = ()) -> list[Role]:
        """Make new secrets for roles of a host, or for all it has; old ones end when the servers are told."""
        folder = self.host_folder(_checked_name(host))
        had = roles_in(folder)
        missing = [role for role in roles if role not in had]
        if missing or not had:
            what = f"secrets of a {missing[0]}" if missing else "secrets"
            raise SecretsError(f"{host} has no {what}: `broker-pipeline secrets add-host` makes them", field="HOST")
        chosen = [role for role in had if not roles or role in roles]
        with _errors_of(folder):
            self._write_roles(folder, chosen)
            if not roles:
                self.certificates.renew(host)
            _write_servers(self.path, self.facts)
        return chosen

    def rotate_gateway_key(self) -> list[str]:
        """Make a new key to the gateway; return the hosts whose folders have it."""
        holders = [host for host, roles in self.hosts.items() if KEY_ROLES & set(roles)]
        with _errors_of(self.path):
            _write_gateway_key(self.path)
            for host in holders:
                self._copy_gateway_key(self.host_folder(host))
        return holders

    def _write_roles(self, folder: Path, roles: Sequence[Role]) -> None:
        write_roles(folder, roles)
        if KEY_ROLES & set(roles):
            self._copy_gateway_key(folder)

    def _copy_gateway_key(self, folder: Path) -> None:
        write_private(folder / GATEWAY_KEY, (self.path / "authority" / GATEWAY_KEY).read_text())


def local_secrets(folder: Path, namespace: str) -> Path:
    """Return the folder of the one host of `up`, made when it is not there. Raises `SecretsError`."""
    if not (folder / HOST_FILE).exists():
        with _errors_of(folder), new_private_directory(folder) as partial:
            write_facts(partial, HostFacts(LOCAL_HOST, namespace))
            write_roles(partial, ROLES)
    return folder


def _write_gateway_key(path: Path) -> None:
    write_private(path / "authority" / GATEWAY_KEY, f"bp-{new_password()}\n")


def _write_servers(path: Path, facts: DirectoryFacts) -> None:
    access = ServerAccess([user for folder in _host_folders(path) for user in users_in(folder)], facts.namespace)
    write_private(path / "servers" / "nats.conf", nats_config(access, facts.servers_at))
    write_private(path / "servers" / "users.acl", access.redis_users())
    write_private(path / "servers" / "redis.conf", redis_config(facts.servers_at))


def _host_folders(path: Path) -> list[Path]:
    return sorted(folder for folder in (path / "hosts").iterdir() if (folder / HOST_FILE).exists())


def _checked_name(host: str) -> str:
    try:
        return msgspec.convert(host, Host)
    except msgspec.ValidationError as error:
        reason = f"{host!r} is no name of a host: up to 32 small letters, digits and hyphens, such as gpu-1"
        raise SecretsError(reason, field="HOST") from error


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SecretsError(f"cannot write {error.filename or path}: {error.strerror}", field="DIR") from error
