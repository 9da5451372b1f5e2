"""How the connections of `tcp` edges are set, so that a host that died is noticed in seconds."""

from __future__ import annotations

import asyncio
import socket

DEAD_AFTER_S = 8
"""Seconds without a sign of life from the other host, or in which it took nothing at all."""
_OPTIONS = {
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": 2,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": (DEAD_AFTER_S - 2) // 2,
    "TCP_USER_TIMEOUT": DEAD_AFTER_S * 1000,
}


def set_options(transport: asyncio.BaseTransport) -> None:
    """Set what the system has of keepalive and the like."""
    connection: socket.socket = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if (number := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, number, value)
