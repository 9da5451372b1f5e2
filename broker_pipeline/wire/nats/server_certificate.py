"""Until when a NATS server's certificate is good, asked by a connection of its own: those that stand show old ones."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from urllib.parse import urlsplit

from broker_pipeline.wire.nats.address import server_addresses

_TIMEOUT_S = 5.0


async def server_certificate_end(url: str, context: ssl.SSLContext) -> datetime | None:
    """Return the first end of the certificates that servers show now; None where none can be asked."""
    ends = [await _end_at(address, context) for address in server_addresses(url)]
    return min((end for end in ends if end is not None), default=None)


async def _end_at(address: str, context: ssl.SSLContext) -> datetime | None:
    parts = urlsplit(address if "://" in address else f"nats://{address}")
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 4222)
            try:
                if b'"tls_required":true' not in await reader.readline():
                    return None
                await writer.start_tls(context, server_hostname=parts.hostname)
                shown = writer.get_extra_info("peercert")
            finally:
                writer.close()
    except (OSError, ValueError, RuntimeError):  # the last is uvloop's of a lost connection; who is connected says so
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)
