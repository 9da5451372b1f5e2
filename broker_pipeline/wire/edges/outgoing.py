"""The edges that lead from this process: made where payloads go, one for each process there.

carry ──► an edge stands? ── yes ──► send ──► a frame with an EdgeRef and no payload
             │ no                     │ full, lost
             ▼                        ▼
          ask, in the background    the frame as it is: a detour over NATS
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog

from broker_pipeline.errors import EdgeFullError, EdgeLostError, PipelineError
from broker_pipeline.messages.edges import EdgeAsk, EdgeKind, EdgeOffer
from broker_pipeline.messages.workers import CarriedCounts
from broker_pipeline.subjects import edge_root
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.edge import EdgeDialer, OnPeerLost, OutgoingEdge

log = structlog.get_logger()

MIN_EDGE_BYTES = 4096
"""Smaller payloads go with their metadata: one message then costs less than two ways."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_MAX_PEERS = 256

Ask = Callable[[str, EdgeAsk], Awaitable[EdgeOffer]]
"""Ask the worker with this root of subjects."""


@dataclass(slots=True)
class _Peer:
    """A process that payloads go to, known by the root of its subjects."""

    root: str
    edge: OutgoingEdge | None = None
    is_stale: bool = False
    asking: asyncio.Task[None] | None = None
    stands_since: float = 0.0
    retry_at: float = 0.0
    num_failures: int = 0


class OutgoingEdges:
    """Carries payloads by edges where it can. `close` ends all of them."""

    def __init__(
        self,
        ask: Ask,
        dialers: Sequence[EdgeDialer],
        root: str = "",
        on_peer_lost: OnPeerLost = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Ask as the process with `root`, try `dialers` in their order.

        `clock` is in seconds, `jitter` says something between 0 and 1.
        """
        self.num_lost = 0
        """Edges that were lost."""
        self.carried: dict[str, CarriedCounts] = {}
        """What took edges, by kind, and under `nats` what was meant to."""
        self._ask = ask
        self._dialers = dialers
        self._root, self._on_peer_lost = root, on_peer_lost
        self._clock = clock
        self._jitter = jitter
        self._peers: dict[str, _Peer] = {}

    @property
    def kinds(self) -> dict[str, EdgeKind]:
        """Which kind of edge leads to whom, by the root of their subjects."""
        return {peer.root: peer.edge.kind for peer in self._peers.values() if peer.edge is not None}

    def place(self, subject: str, num_bytes: int) -> memoryview | None:
        """Return room on the way to `subject` for a payload that is yet to be made; see `OutgoingEdge.place`."""
        root = edge_root(subject)
        peer = self._peers.get(root) if root is not None and num_bytes >= MIN_EDGE_BYTES else None
        edge = peer.edge if peer is not None else None
        return edge.place(num_bytes) if edge is not None else None

    async def carry(self, subject: str, frame: Frame) -> Frame:
        """Send the payload of a frame by an edge, and return what is left for NATS: at worst the frame itself."""
        root = edge_root(subject) if frame.num_payload_bytes >= MIN_EDGE_BYTES else None
        if root is None:
            return frame
        edge = await self._edge_to(root)
        if edge is not None:
            try:
                ref = await edge.send(frame)
            except (EdgeFullError, EdgeLostError) as error:
                log.debug("edge_detour", edge=edge.kind, root=root, reason=error.message)
            else:
                self._count(edge.kind, frame.num_payload_bytes)
                return Frame(frame.metadata, (), 0, ref)
        self._count("nats", frame.num_payload_bytes)
        return frame

    def renew(self) -> None:
        """Have edges made anew with their next payloads: messages may be lost, and nobody frees what they refer to."""
        for peer in self._peers.values():
            peer.is_stale = peer.edge is not None

    async def close(self) -> None:
        """End every edge; what was sent remains good."""
        asking = [peer.asking for peer in self._peers.values() if peer.asking is not None]
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)
        for peer in self._peers.values():
            if peer.edge is not None:
                await peer.edge.close()
        self._peers.clear()

    async def _edge_to(self, root: str) -> OutgoingEdge | None:
        """Return the edge to a process; where there is none, see to it that there will be, if it is time to."""
        peer = self._peers.get(root) or self._add_peer(root)
        if peer.is_stale and peer.edge is not None and peer.asking is None:
            peer.is_stale = False
            peer.asking = asyncio.get_running_loop().create_task(self._replace(peer, peer.edge), name=f"edge to {root}")
            return None
        if peer.edge is None and peer.asking is None and self._clock() >= peer.retry_at:
            peer.asking = asyncio.get_running_loop().create_task(self._connect(peer), name=f"edge to {root}")
        return peer.edge

    def _add_peer(self, root: str) -> _Peer:
        if len(self._peers) >= _MAX_PEERS:  # each start of a worker is another one
            self._peers = {root: peer for root, peer in self._peers.items() if peer.edge or peer.asking}
        return self._peers.setdefault(root, _Peer(root))

    async def _replace(self, peer: _Peer, edge: OutgoingEdge) -> None:
        """Make an edge anew at once, not with the next payload: that it ends is how a peer's death is known."""
        await edge.close()
        await self._connect(peer)

    async def _connect(self, peer: _Peer) -> None:
        try:
            peer.edge = await self._dial(peer.root)
        except PipelineError as error:
            log.info("edge_not_made", root=peer.root, reason=error.message)
        finally:
            peer.asking = None
            if peer.edge is None:
                self._pause(peer)
        if peer.edge is not None:
            peer.stands_since = self._clock()
            log.info("edge_opened", edge=peer.edge.kind, direction="out", root=peer.root)
            peer.edge.lost.add_done_callback(lambda lost: self._on_lost(peer, lost.result()))

    async def _dial(self, root: str) -> OutgoingEdge | None:
        offer = await self._ask(root, EdgeAsk(kinds=tuple(dialer.kind for dialer in self._dialers), root=self._root))
        for dialer in self._dialers:
            try:
                if edge := await dialer.connect(offer, root):
                    return edge
            except EdgeLostError as error:
                log.warning("edge_failed", edge=dialer.kind, root=root, reason=error.message)
        return None

    def _on_lost(self, peer: _Peer, error: EdgeLostError) -> None:
        if self._peers.get(peer.root) is peer:  # not when all of them are being closed
            log.info(
                "edge_lost", direction="out", edge=peer.edge and peer.edge.kind, root=peer.root, reason=error.message
            )
            self.num_lost += 1
            peer.edge = None
            if self._clock() - peer.stands_since > _LONGEST_PAUSE_S:
                peer.num_failures = 0
            self._pause(peer)
            self._on_peer_lost(peer.root)

    def _pause(self, peer: _Peer) -> None:
        """Let some time pass before the next try: longer each time, and not the same for everybody."""
        pause_s = min(_FIRST_PAUSE_S * 2**peer.num_failures, _LONGEST_PAUSE_S)
        peer.retry_at = self._clock() + pause_s * (0.5 + 0.5 * self._jitter())
        peer.num_failures = min(peer.num_failures + 1, 10)

    def _count(self, kind: str, num_bytes: int) -> None:
        before = self.carried.get(kind, CarriedCounts())
        self.carried[kind] = msgspec.structs.replace(
            before, num_messages=before.num_messages + 1, num_bytes=before.num_bytes + num_bytes
        )
