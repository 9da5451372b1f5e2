"""Redis behind Sentinel: which server is the master, sentinels say, and are asked again for each new connection.

    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],…/SERVICE[/DB][?sentinel_username=…&sentinel_password=…]
                      of the servers  └ the sentinels, 26379 ┘         └ 0 ┘   of the sentinels

`rediss+sentinel` encrypts the connections to both.
"""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from broker_pipeline.state.pools.encrypted import EncryptedManagedConnection, encrypt_sentinels

_SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}
_DEFAULT_PORT = 26379
_QUERY = {"sentinel_username": "username", "sentinel_password": "password"}
_SENTINEL_S = 1.0  # for each: the next one is asked then


class SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """A bounded pool of connections to whoever is the master when each is made."""

    async def aclose(self) -> None:
        """Close all connections, those to sentinels as well."""
        await super().aclose()
        for sentinel in self.sentinel_manager.sentinels:
            await sentinel.aclose()


def is_sentinel_url(url: str) -> bool:
    """Whether a URL names sentinels rather than a server."""
    return url.partition("://")[0] in _SCHEMES


def sentinel_pool(url: str, options: dict[str, Any], context: ssl.SSLContext | None = None) -> SentinelPool:
    """Return a pool with `BlockingConnectionPool`'s `options`; `ValueError` for a URL that does not say all.

    What is encrypted, is by `context` where there is one.
    """
    parts = urlsplit(url)
    path = parts.path.strip("/").split("/")
    if not path[0] or len(path) > 2 or not (len(path) == 1 or path[1].isdecimal()):
        raise ValueError("it ends in /SERVICE or /SERVICE/DB, where SERVICE is the master's name at the sentinels")
    of_sentinels: dict[str, Any] = {name: options[name] for name in ("retry", "retry_on_error", "protocol")}
    of_sentinels |= _query(parts)
    of_servers: dict[str, Any] = {
        name: unquote(value) for name in ("username", "password") if (value := getattr(parts, name))
    }
    if _SCHEMES[parts.scheme]:
        of_sentinels["ssl"] = of_servers["ssl"] = True
    timeouts = {"socket_timeout": _SENTINEL_S, "socket_connect_timeout": _SENTINEL_S}
    sentinel = Sentinel(_addresses(parts), sentinel_kwargs=of_sentinels | timeouts)  # type: ignore[no-untyped-call]
    if context is not None:
        encrypt_sentinels(sentinel, context)
        options = {**options, "connection_class": EncryptedManagedConnection, "context": context}
    db = int(path[1]) if len(path) == 2 else 0
    return SentinelPool(unquote(path[0]), sentinel, db=db, **{**options, **of_servers})  # type: ignore[no-untyped-call]


def _addresses(parts: SplitResult) -> list[tuple[str, int]]:
    found = []
    for text in parts.netloc.rpartition("@")[2].split(","):
        address = urlsplit(f"//{text.strip()}")
        if not address.hostname:
            raise ValueError("sentinels are HOST or HOST:PORT, separated by commas")
        found.append((address.hostname, address.port or _DEFAULT_PORT))
    return found


def _query(parts: SplitResult) -> dict[str, str]:
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(given.keys() - _QUERY.keys()):
        raise ValueError(f"{unknown[0]} is none of {', '.join(_QUERY)}")
    return {_QUERY[name]: value for name, value in given.items()}
