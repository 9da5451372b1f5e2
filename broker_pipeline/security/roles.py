"""Who there is: roles, hosts, and what both are called at the servers."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from broker_pipeline import subjects

Role = Literal["gateway", "conductor", "vision", "stage", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
WORKERS: tuple[Role, ...] = ("vision", "stage")
Host = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]
LOCAL_HOST = "local"
"""The one host of `up`: it has all workers, whatever their names."""
ANY = "*"
_HOST_NAME = re.compile(r"[A-Za-z0-9_*]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Scope:
    """What a row's name is asked for: a namespace, and whose subjects or keys."""

    namespace: str
    host: str
    """A host's name, or `*` for all."""

    def root(self, role: str) -> str:
        """Return the roots of subjects of these hosts' workers of a role."""
        return subjects.worker_root(self.namespace, ANY, role, f"{self.host}_{ANY}", ANY)

    def stream(self, api: str, stream: str, rest: str = "") -> str:
        """Return the subject of a request to JetStream about one of its streams."""
        return f"$JS.API.{api}.{stream}{rest}"


def redis_user(role: Role, host: str) -> str:
    """Return the name of a role's user in Redis."""
    return f"{role}-{host}"


def inbox_prefix(role: str, host: str) -> str:
    """Return where answers to requests of a role on a host arrive."""
    return f"_INBOX.{role}.{host}"


def worker_prefix(host: str) -> str:
    """Return what names of a host's workers begin with."""
    return "" if host == LOCAL_HOST else f"{host}_"


def is_host_address(text: str) -> bool:
    """Say whether a host may be reached so. No name ends in a number: that would be a mistyped IP address.

    >>> [is_host_address(text) for text in ("10.0.0.3", "gpu-3.example", "10.0.0.300", "10.0.0", "10.0.0.3:7400")]
    [True, True, False, False, False]
    """
    with suppress(ValueError):
        ipaddress.ip_address(text)
        return True
    return _HOST_NAME.fullmatch(text) is not None and not text.rpartition(".")[2].isdigit()
