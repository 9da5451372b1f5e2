"""How a connection ends whose other end has become unreachable.

    partition ──► what is sent is not acknowledged for a second ──► the connection ends, and a new one is tried at once
    without   ──► TCP repeats it after 0.2, 0.4, 0.8, 1.6, 3.2, 6.4 s …: up to as long again after the network is back

A server or client that merely hangs or is slow is not meant: its kernel acknowledges all the same. The kernel ends
connections by `TCP_OPTIONS`, but not while packets wait for the address of the next hop (ARP), for which it does not
count them as repeated: one in thirty outlasted a partition so. Where streams depend on it, `unacknowledged_s` is asked.
"""

from __future__ import annotations

import socket
import struct

UNACKNOWLEDGED_S = 1.0
CONNECT_TIMEOUT_S = 0.75
"""An attempt to connect that met a broken network is given up after this, not when TCP repeats it after 1, 3, 7 s."""

TCP_OPTIONS = {socket.TCP_USER_TIMEOUT: int(UNACKNOWLEDGED_S * 1000)} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
"""Of the level IPPROTO_TCP; Linux has them, elsewhere TCP's own time-outs apply."""

_UNACKED_AT, _LAST_ACK_AT, _INFO_BYTES = 24, 56, 60
"""In Linux's `tcp_info`: packets under way, and milliseconds since the last acknowledgement."""


def unacknowledged_s(connection: socket.socket) -> float:
    """Return since when nothing has been acknowledged, in seconds, while something waits for that; else 0."""
    if not TCP_OPTIONS:
        return 0.0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    num_packets, last_ms = (struct.unpack_from("=I", info, at)[0] for at in (_UNACKED_AT, _LAST_ACK_AT))
    return last_ms / 1000 if num_packets else 0.0
