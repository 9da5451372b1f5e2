"""Keeps web pages of other sites out, which a user's browser lets send requests to whatever the user can reach. Pure.

A browser says where a page is from (`Origin`), how far that is from here (`Sec-Fetch-Site`), and under which name it
looked this gateway up (`Host`): a name that leads here for the moment only (DNS rebinding) is none of ours.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from broker_pipeline.errors import PermissionDeniedError

_EXPOSED = (
    "Location, Retry-After, X-Request-Id, Idempotent-Replayed, x-ratelimit-limit-requests, "
    "x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, "
    "x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_PREFLIGHT_S = 600


@dataclass(frozen=True, slots=True)
class WebPages:
    """Which pages may send requests, and under which names the gateway may be asked."""

    allowed_origins: frozenset[str] = frozenset()
    """Such as `https://app.example.com`."""
    allowed_hosts: frozenset[str] = frozenset()
    """Names without a port; `*` is any. Addresses, `localhost` and this machine's own name always are."""

    def check_page(self, method: str, headers: Mapping[str, str]) -> None:
        """Raise `PermissionDeniedError` for a request that another site's page had a browser send."""
        origin = headers.get("Origin")
        if origin is not None:
            if not self.allows(origin) and not _is_same(origin, headers.get("Host", "")):
                raise PermissionDeniedError(
                    f"pages of {origin[:200]} may not use this gateway; --allow-origin lets them", field="Origin"
                )
        elif headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"} and not _is_link(method, headers):
            raise PermissionDeniedError("pages of other sites may not use this gateway", field="Sec-Fetch-Site")

    def check_host(self, host: str | None) -> None:
        """Raise `PermissionDeniedError` for a request that asks for a name that is not the gateway's."""
        name = _name_of(host or "")
        if name and not _is_own(name) and not self.allowed_hosts & {name, "*"}:
            raise PermissionDeniedError(
                f"this gateway is not called {name[:200]}; --allow-host lets it be", field="Host"
            )

    def allows(self, origin: str) -> bool:
        """Say whether pages from `origin` were let in by name."""
        return origin in self.allowed_origins

    def answer_headers(self, origin: str | None) -> dict[str, str]:
        """Return what lets a page read an answer."""
        if origin is None or not self.allows(origin):
            return {"Vary": "Origin"} if self.allowed_origins else {}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED, "Vary": "Origin"}

    def preflight_headers(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Return what lets a page send the request that it asks about."""
        return {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": asked.get("Access-Control-Request-Headers", "")[:1000],
            "Access-Control-Max-Age": str(_PREFLIGHT_S),
        }


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Say whether a browser asks what a page may send."""
    return method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def _is_link(method: str, headers: Mapping[str, str]) -> bool:
    """Whether somebody followed a link: the other site's page is left, and sees nothing of the answer."""
    return method in {"GET", "HEAD"} and (headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")) == (
        "navigate",
        "document",
    )


def _is_same(origin: str, host: str) -> bool:
    """Whether a page is from the gateway itself; a proxy in front of it may speak TLS."""
    try:
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0][1:]
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _is_own(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower()
    return True
