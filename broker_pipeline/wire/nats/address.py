"""Addresses of NATS servers: checked before they are used, and shown without what is secret in them."""

from __future__ import annotations

from urllib.parse import urlsplit

from broker_pipeline.errors import ConfigurationError


def server_addresses(url: str) -> list[str]:
    """Split and check the addresses of one or several servers; `ConfigurationError` for what is none."""
    addresses = [part.strip() for part in url.split(",") if part.strip()]
    for address in addresses:
        try:
            pieces = urlsplit(address if "://" in address else f"nats://{address}")
            is_address = pieces.scheme in {"nats", "tls"} and bool(pieces.hostname) and pieces.port != 0
        except ValueError:
            is_address = False
        if not is_address:
            addresses = []
            break
    if not addresses:
        raise ConfigurationError(
            "a NATS server's address looks like nats://HOST:4222 (several: separated by commas)", field="nats_url"
        )
    return addresses


def without_credentials(url: str) -> str:
    """Return server addresses in a form that may be logged."""
    shown = []
    for part in url.split(","):
        pieces = urlsplit(part.strip())
        shown.append(pieces._replace(netloc=pieces.netloc.rpartition("@")[2]).geturl())
    return ",".join(shown)
