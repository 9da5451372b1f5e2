"""Connections to Redis and its sentinels that show this host's certificate.

redis-py makes a context of its own for each connection and keeps it: these share one, which takes new files.
"""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, SSLConnection
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.security.loopback import is_loopback


class EncryptedConnection(SSLConnection):
    """A connection encrypted by a given context."""

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        """Take what `SSLConnection` takes."""
        super().__init__(**options)
        self.ssl_context.context = context


class EncryptedManagedConnection(SentinelManagedConnection, EncryptedConnection):
    """One to whoever is the master."""


def context_for(url: str, credentials: Credentials) -> ssl.SSLContext | None:
    """Return what the connections of a URL are encrypted with; None on the loopback interface, where it asks for none.

    Raises `ConfigurationError` where others could listen in, `CertificateError` where the certificate is not good.
    """
    if url.startswith("rediss"):
        return credentials.tls.client if credentials.tls else None
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    if url.startswith("unix:") or all(is_loopback(urlsplit(f"//{host}").hostname or "") for host in hosts):
        return None
    raise ConfigurationError(
        "--redis-url begins with redis:// and leads to another host: with --secrets it is rediss://, which encrypts",
        field="redis_url",
    )


def server_pool(url: str, options: dict[str, Any], context: ssl.SSLContext | None) -> BlockingConnectionPool:
    """Return a pool of connections to the server of a URL, by `context` where there is one."""
    if context is None:
        return BlockingConnectionPool.from_url(url, **options)
    # Of `rediss`, redis-py would have its own kind of connection.
    plain = "redis" + url.removeprefix("rediss")
    return BlockingConnectionPool.from_url(plain, connection_class=EncryptedConnection, context=context, **options)


def encrypt_sentinels(sentinel: Sentinel, context: ssl.SSLContext) -> None:
    """Have sentinels asked over connections encrypted by `context`."""
    for client in sentinel.sentinels:
        client.connection_pool.connection_class = EncryptedConnection
        client.connection_pool.connection_kwargs["context"] = context
