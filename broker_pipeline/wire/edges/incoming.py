"""The edges that lead to this process: offered to whoever asks, and asked for payloads by refs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from broker_pipeline.errors import EdgeLostError, PartError
from broker_pipeline.messages.edges import EdgeAsk, EdgeKind, EdgeOffer, EdgeRef
from broker_pipeline.wire.edges.edge import LINGER_S, EdgeServer, IncomingEdge, OnPeerLost

log = structlog.get_logger()


class IncomingEdges:
    """Edges by the names that refs have for them."""

    def __init__(self) -> None:
        """Begin with none, and offer none."""
        self._edges: dict[str, IncomingEdge] = {}
        self._servers: dict[EdgeKind, EdgeServer] = {}
        self._on_peer_lost: OnPeerLost | None = None

    @asynccontextmanager
    async def serve(
        self, servers: Iterable[tuple[EdgeKind, EdgeServer]], on_peer_lost: OnPeerLost
    ) -> AsyncIterator[None]:
        """Listen on every server while the context is open; afterwards what came can still be taken."""
        self._on_peer_lost = on_peer_lost
        async with AsyncExitStack() as stack:
            for kind, server in servers:
                self._servers[kind] = await stack.enter_async_context(server)
            try:
                yield
            finally:
                self._servers.clear()
                self._on_peer_lost = None

    def offer(self, ask: EdgeAsk) -> EdgeOffer:
        """Return the ways in of the kinds that are asked for."""
        offer = EdgeOffer()
        for kind, server in self._servers.items():
            if kind in ask.kinds:
                offer = server.offer(offer, ask)
        return offer

    def add(self, edge: IncomingEdge) -> None:
        """Know an edge from now on, until some seconds after it is lost."""
        self._edges[edge.name] = edge
        log.info("edge_opened", edge=edge.kind, direction="in", name=edge.name[:8])
        edge.lost.add_done_callback(lambda lost: self._on_lost(edge, lost.result()))

    def take(self, ref: EdgeRef) -> memoryview | asyncio.Future[memoryview]:
        """Return a payload, now or in a moment; see `IncomingEdge.take`."""
        edge = self._edges.get(ref.edge)
        if edge is None:
            raise PartError("the payload came by an edge that this process does not have", field="edge")
        return edge.take(ref)

    def _on_lost(self, edge: IncomingEdge, error: EdgeLostError) -> None:
        log.info("edge_lost", edge=edge.kind, direction="in", name=edge.name[:8], reason=error.message)
        if edge.peer and self._on_peer_lost is not None:
            self._on_peer_lost(edge.peer)
        asyncio.get_running_loop().call_later(LINGER_S, self._edges.pop, edge.name, None)
