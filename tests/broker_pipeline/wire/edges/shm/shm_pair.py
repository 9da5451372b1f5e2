"""Both ends of an edge in shared memory, in one process."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from broker_pipeline.messages.edges import EdgeOffer
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.edge import IncomingEdge
from broker_pipeline.wire.edges.shm.receiver import RingLimits, ShmReceiver, ShmServer
from broker_pipeline.wire.edges.shm.ring import OnRing
from broker_pipeline.wire.edges.shm.sender import ShmDialer, ShmSender

RING_BYTES = 64 * 1024


@dataclass(slots=True)
class Pair:
    server: ShmServer
    sender: ShmSender
    incoming: list[IncomingEdge] = field(default_factory=list)

    @property
    def receiver(self) -> ShmReceiver:
        edge = self.incoming[0]
        assert isinstance(edge, ShmReceiver)
        return edge


def frame_of(*pieces: bytes | memoryview) -> Frame:
    return Frame(b"{}", pieces, sum(len(piece) for piece in pieces))


def random_frame(num_bytes: int) -> tuple[Frame, bytes]:
    content = os.urandom(num_bytes)
    return frame_of(content), content


@asynccontextmanager
async def serving(
    directory: Path,
    incoming: list[IncomingEdge],
    limits: RingLimits | None = None,
    on_ring: OnRing | None = None,
) -> AsyncIterator[ShmServer]:
    async with ShmServer(incoming.append, limits or RingLimits(RING_BYTES), on_ring, directory) as server:
        yield server


@asynccontextmanager
async def shm_pair(
    directory: Path,
    *,
    num_bytes: int = RING_BYTES,
    on_ring: OnRing | None = None,
    dial: Callable[[], ShmDialer] = ShmDialer,
) -> AsyncIterator[Pair]:
    incoming: list[IncomingEdge] = []
    async with serving(directory, incoming, RingLimits(num_bytes), on_ring) as server:
        sender = await dial().connect(server.offer(EdgeOffer()))
        assert sender is not None
        try:
            yield Pair(server, sender, incoming)
        finally:
            await sender.close()
