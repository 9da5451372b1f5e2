"""HTTP to where others say: each socket that is about to be connected is shown to the address guard first.

Nothing is sent that could identify the host: no cookies, no proxy or password files from the environment.
"""

from __future__ import annotations

import socket
from typing import Any

import aiohttp

from broker_pipeline import __version__
from gateway.address_guard import AddressGuard

_USER_AGENT = f"broker-pipeline/{__version__}"


class GuardedSockets:
    """Opens sockets to addresses that a guard allows, for one request after the other."""

    def __init__(self, guard: AddressGuard) -> None:
        self.was_refused = False
        """Whether an address was refused since this was last set."""
        self._guard = guard

    def session(self, headers: dict[str, str]) -> aiohttp.ClientSession:
        """Return a session that connects with these sockets, anew for each request."""
        connector = aiohttp.TCPConnector(socket_factory=self._open, use_dns_cache=False, force_close=True, limit=1)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": _USER_AGENT} | headers,
            auto_decompress=False,
        )

    def _open(self, address_info: Any) -> socket.socket:
        family, kind, protocol, _, address = address_info
        if not self._guard.allows(str(address[0])):
            self.was_refused = True
            raise OSError("refused by the address guard")
        return socket.socket(family, kind, protocol)
