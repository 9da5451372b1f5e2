"""Both ends of a `tcp` edge, in one process and over real sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from broker_pipeline.messages.edges import EdgeOffer, EdgeRef
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.edge import IncomingEdge
from broker_pipeline.wire.edges.tcp.incoming import TcpIncomingEdge
from broker_pipeline.wire.edges.tcp.layout import CHANNELS
from broker_pipeline.wire.edges.tcp.outgoing import TcpDialer, TcpOutgoingEdge
from broker_pipeline.wire.edges.tcp.server import TcpServer


@dataclass(slots=True)
class Pair:
    server: TcpServer
    outgoing: TcpOutgoingEdge
    incoming: TcpIncomingEdge


def random_frame(num_bytes: int) -> tuple[Frame, bytes]:
    content = os.urandom(num_bytes)
    middle = num_bytes // 3
    return Frame(b"{}", (content[:middle], memoryview(content)[middle:]), num_bytes), content


def large_frame(num_bytes: int) -> Frame:
    return Frame(b"{}", (bytes(num_bytes),), num_bytes)


async def fill(pair: Pair, channel: int) -> tuple[list[EdgeRef], asyncio.Task[EdgeRef]]:
    """Send until there is no room at the receiver, nor in the kernel; return what has gone, and the send that waits."""
    refs: list[EdgeRef] = []
    while True:
        frame = large_frame(CHANNELS[channel].max_payload_bytes)
        sending = asyncio.create_task(pair.outgoing.send(frame))
        done, _ = await asyncio.wait([sending], timeout=0.5)
        if not done:
            return refs, sending
        refs.append(sending.result())


async def taken(edge: TcpIncomingEdge, ref: EdgeRef) -> memoryview:
    found = edge.take(ref)
    async with asyncio.timeout(20):
        return await found if isinstance(found, asyncio.Future) else found


@asynccontextmanager
async def serving(incoming: list[IncomingEdge], **options: Any) -> AsyncIterator[TcpServer]:
    async with TcpServer(incoming.append, host="127.0.0.1", **options) as server:
        yield server


@asynccontextmanager
async def tcp_pair(*, is_encrypted: bool = True, payload_timeout_s: float = 60, **options: Any) -> AsyncIterator[Pair]:
    incoming: list[IncomingEdge] = []
    async with serving(incoming, is_encrypted=is_encrypted, payload_timeout_s=payload_timeout_s, **options) as server:
        outgoing = await TcpDialer(is_encrypted=is_encrypted).connect(server.offer(EdgeOffer()))
        assert outgoing is not None
        [edge] = incoming
        assert isinstance(edge, TcpIncomingEdge)
        try:
            yield Pair(server, outgoing, edge)
        finally:
            await outgoing.close()
