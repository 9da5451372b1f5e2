"""When certificates end: who is told, from when on, and what there is to do."""

from __future__ import annotations

from datetime import datetime, timedelta

WARNED_BEFORE = timedelta(days=30)
SERVERS = "servers"
"""What the host of NATS and Redis is called in its certificate, and its folder."""


def end_warning(what: str, host: str, ends_at: datetime, now: datetime) -> str | None:
    """Return what to say of the end of `what`, a certificate of `host`; None where that is far."""
    if ends_at - now > WARNED_BEFORE:
        return None
    if ends_at <= now:
        return f"{what} ended on {ends_at:%Y-%m-%d}: {renewal(host)}"
    return f"{what} ends on {ends_at:%Y-%m-%d}, in {(ends_at - now).days} days: {renewal(host)}"


def renewal(host: str) -> str:
    """Say how a host gets a new certificate."""
    if host == SERVERS:
        return "where the authority is, run `broker-pipeline secrets rotate DIR --certificate`; copy DIR/servers again"
    return (
        f"where the authority is, run `broker-pipeline secrets rotate DIR {host} --certificate`, and copy "
        f"DIR/hosts/{host} to {host} again"
    )
