"""Listens for `tcp` edges on one port, and makes the offers that lead to it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import msgspec

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer, TcpOffer
from broker_pipeline.wire.edges.edge import NOBODY, OnEdge
from broker_pipeline.wire.edges.tcp.door import Door
from broker_pipeline.wire.edges.tcp.identity import EdgeIdentity, Identity
from broker_pipeline.wire.edges.tcp.incoming import PAYLOAD_TIMEOUT_S
from broker_pipeline.wire.edges.tcp.inlet import Inlet

HELLO_TIMEOUT_S = 5.0
MAX_EDGES = 64


class TcpServer:
    """One port, and the edges that came in through it."""

    def __init__(
        self,
        on_edge: OnEdge,
        *,
        host: str,
        ports: Iterable[int] = (0,),
        is_encrypted: bool = True,
        identity: EdgeIdentity | None = None,
        max_edges: int = MAX_EDGES,
        payload_timeout_s: float = PAYLOAD_TIMEOUT_S,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        """Announce `host`, and listen on the first of `ports` that is free; 0 is any.

        Encrypted as `identity`, which None makes up for this process.
        """
        self._host, self._ports = host, tuple(ports)
        self._identity = (identity or Identity()) if is_encrypted else None
        self._max_edges, self._hello_timeout_s = max_edges, hello_timeout_s
        self.door = Door(
            on_edge,
            hello_timeout_s=hello_timeout_s,
            payload_timeout_s=payload_timeout_s,
            is_vouched=is_encrypted and identity is not None,
        )

    async def __aenter__(self) -> Self:
        """Listen. Raises `ConfigurationError` where no port is free."""
        self._loop = asyncio.get_running_loop()
        self._server = await self._listen()
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self.door.close()

    def offer(self, offer: EdgeOffer, ask: EdgeAsk = NOBODY) -> EdgeOffer:
        """Add a way in to an offer; see `EdgeServer`."""
        if self.door.num_edges >= self._max_edges:
            return offer
        token = self.door.tokens.issue(ask)
        certificate = self._identity.fingerprint if self._identity else ""
        return msgspec.structs.replace(
            offer, tcp=TcpOffer(addresses=(self.address,), token=token, certificate=certificate)
        )

    async def _listen(self) -> asyncio.Server:
        for port in self._ports:
            try:
                return await self._bind(self._host, port)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:  # the address is that of a router in front of this host
                    return await self._bind("::" if ":" in self._host else "0.0.0.0", port)  # noqa: S104 - tokens admit
                if error.errno != errno.EADDRINUSE:
                    raise ConfigurationError(f"cannot listen on {self._host}: {error}", field="edge_host") from error
        raise ConfigurationError(f"none of the ports {self._ports} of {self._host} is free", field="edge_port")

    async def _bind(self, host: str | None, port: int) -> asyncio.Server:
        context = self._identity.edge_listener if self._identity else None
        timeout_s = self._hello_timeout_s if context else None
        return await self._loop.create_server(
            lambda: Inlet(self.door), host, port, ssl=context, ssl_handshake_timeout=timeout_s
        )
