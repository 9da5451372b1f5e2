"""The folder of one host's secrets: what is in it, how it is made, and how servers know whoever has it.

host.json                      the host's name, and the namespace that its rights are for
ROLE.nk  ROLE.redis            an NKey's seed, a password: for each role that the host has
gateway.key                    key to the gateway that allows everything: gateways and operators
ca.crt  tls.crt  tls.key       for TLS
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec
import nkeys

from broker_pipeline.errors import SecretsError
from broker_pipeline.messages.base import Name
from broker_pipeline.process.private_files import write_private
from broker_pipeline.security.roles import ROLES, Host, Role
from broker_pipeline.security.server_configs import User, sha256

HOST_FILE = "host.json"
GATEWAY_KEY = "gateway.key"
KEY_ROLES: frozenset[Role] = frozenset({"gateway", "operator"})


class HostFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `host.json` says."""

    host: Host
    namespace: Name


def read_facts(folder: Path) -> HostFacts:
    """Return whose folder it is; raises `SecretsError`."""
    path = folder / HOST_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=HostFacts)
    except FileNotFoundError as error:
        raise SecretsError(
            f"{folder} is no folder of a host's secrets, such as DIR/hosts/HOST of `broker-pipeline secrets`: it has "
            f"no {HOST_FILE}"
        ) from error
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise SecretsError(f"{path} cannot be used: {error}") from error


def read_secret(path: Path) -> str:
    """Return what a file of one line holds; raises `SecretsError`."""
    try:
        text = path.read_text("ascii").strip()
    except FileNotFoundError as error:
        raise SecretsError(
            f"{path} is missing: this host has no such secret; `broker-pipeline secrets add-host DIR HOST --role ROLE` "
            "makes those of a role"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SecretsError(f"{path} cannot be read: {error}") from error
    if not text:
        raise SecretsError(f"{path} is empty: `broker-pipeline secrets rotate` makes it anew")
    return text


def roles_in(folder: Path) -> tuple[Role, ...]:
    """Return the roles whose secrets are whole."""
    return tuple(role for role in ROLES if all((folder / f"{role}.{kind}").exists() for kind in ("nk", "redis")))


def users_in(folder: Path) -> list[User]:
    """Return a host's users, as the servers know them. Raises `SecretsError`."""
    host = read_facts(folder).host
    return [_user(folder, host, role) for role in roles_in(folder)]


def write_facts(folder: Path, facts: HostFacts) -> None:
    """Say whose folder it is."""
    write_private(folder / HOST_FILE, msgspec.json.encode(facts).decode())


def write_roles(folder: Path, roles: Iterable[Role]) -> None:
    """Make new secrets for some roles."""
    for role in roles:
        write_private(folder / f"{role}.nk", f"{_new_seed()}\n")
        write_private(folder / f"{role}.redis", f"{new_password()}\n")


def new_password() -> str:
    """Return 256 random bits."""
    return secrets.token_urlsafe(32)


def public_key(seed: str) -> str:
    """Return the public key of an NKey; raises `ValueError` for what is no seed of a user."""
    try:
        return str(nkeys.from_seed(bytearray(seed.encode())).public_key, "ascii")
    except nkeys.NkeysError as error:
        raise ValueError(str(error)) from error


def _user(folder: Path, host: str, role: Role) -> User:
    path = folder / f"{role}.nk"
    try:
        return User(role, host, public_key(read_secret(path)), sha256(read_secret(folder / f"{role}.redis")))
    except ValueError as error:
        reason = f"{path} is no seed of an NKey ({error}): `broker-pipeline secrets rotate` makes it anew"
        raise SecretsError(reason) from error


def _new_seed() -> str:
    return str(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER), "ascii")
