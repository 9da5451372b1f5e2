"""Socket options by which the kernel ends a connection whose other end has become unreachable.

    partition ──► what is sent is not acknowledged for a second ──► the connection ends, and a new one is tried at once
    without   ──► TCP repeats it after 0.2, 0.4, 0.8, 1.6, 3.2, 6.4 s …: up to as long again after the network is back

A server or client that merely hangs or is slow is not meant: its kernel acknowledges all the same.
"""

from __future__ import annotations

import socket

UNACKNOWLEDGED_S = 1.0
CONNECT_TIMEOUT_S = 0.75
"""An attempt to connect that met a broken network is given up after this, not when TCP repeats it after 1, 3, 7 s."""

TCP_OPTIONS = {socket.TCP_USER_TIMEOUT: int(UNACKNOWLEDGED_S * 1000)} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
"""Of the level IPPROTO_TCP; Linux has them, elsewhere TCP's own time-outs apply."""
