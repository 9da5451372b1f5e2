"""The kinds of edges there are, made from settings: another one is one more case here."""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.messages.edges import EdgeKind
from broker_pipeline.wire.edges.edge import EdgeDialer, EdgeServer, OnEdge
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.edges.shm.receiver import RingLimits, ShmServer
from broker_pipeline.wire.edges.shm.sender import ShmDialer
from broker_pipeline.wire.edges.tcp.outgoing import TcpDialer
from broker_pipeline.wire.edges.tcp.server import TcpServer


def edge_servers(settings: EdgeSettings, on_edge: OnEdge, local_host: str) -> Iterator[tuple[EdgeKind, EdgeServer]]:
    """Yield what listens, for each kind that is chosen; at `local_host` where no other address is."""
    for kind in settings.kinds:
        if kind == "shm":
            limits = RingLimits(settings.ring_bytes, settings.max_edges)
            yield kind, ShmServer(on_edge, limits, settings.on_ring, settings.shm_directory)
        else:
            yield (
                kind,
                TcpServer(
                    on_edge,
                    host=settings.host or local_host,
                    ports=settings.ports,
                    is_encrypted=settings.is_encrypted,
                    identity=settings.identity,
                    max_edges=settings.max_edges,
                ),
            )


def edge_dialers(settings: EdgeSettings) -> Iterator[EdgeDialer]:
    """Yield what connects, in the order in which the chosen kinds are tried."""
    for kind in settings.kinds:
        if kind == "shm":
            yield ShmDialer(settings.on_ring)
        else:
            yield TcpDialer(is_encrypted=settings.is_encrypted, identity=settings.identity)
