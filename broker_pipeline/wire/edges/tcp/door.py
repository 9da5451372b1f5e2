"""Who comes with a good token, on every channel, becomes an edge; everybody else is sent away.

offer(token) ──NATS──► dialer ── hello(token, channel), one a channel ──► all there? ──► TcpIncomingEdge ──► on_edge
"""

from __future__ import annotations

import asyncio
import hmac

import structlog

from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.edges import Token
from broker_pipeline.wire.edges.edge import OnEdge
from broker_pipeline.wire.edges.tcp.incoming import TcpIncomingEdge
from broker_pipeline.wire.edges.tcp.inlet import Inlet
from broker_pipeline.wire.edges.tcp.layout import CHANNELS
from broker_pipeline.wire.edges.tokens import Tokens

log = structlog.get_logger()

_MAX_STRANGERS = 64 * len(CHANNELS)


class Door:
    """The strangers at a port, and the edges that some of them became."""

    def __init__(self, on_edge: OnEdge, *, hello_timeout_s: float, payload_timeout_s: float) -> None:
        """Tell `on_edge` of each edge that stands."""
        self.tokens = Tokens()
        self._on_edge = on_edge
        self._hello_timeout_s, self._payload_timeout_s = hello_timeout_s, payload_timeout_s
        self._inlets: dict[Inlet, asyncio.TimerHandle] = {}
        self._all_left = asyncio.Event()
        self._groups: dict[Token, dict[int, Inlet]] = {}
        self._edges: set[TcpIncomingEdge] = set()

    @property
    def num_edges(self) -> int:
        """How many edges stand, or are being made."""
        return len(self._edges) + len(self._groups)

    async def close(self) -> None:
        """Send everybody away, and return when they have gone."""
        for inlet in list(self._inlets):
            inlet.abort(EdgeLostError("the receiver ended"))
        if self._inlets:
            await self._all_left.wait()

    # --- told by inlets ---

    def enter(self, inlet: Inlet) -> None:
        """Give a stranger some time to introduce itself."""
        self._inlets[inlet] = asyncio.get_running_loop().call_later(
            self._hello_timeout_s, inlet.abort, EdgeLostError("it did not say who it is in time")
        )
        num_strangers = sum(not timer.cancelled() for timer in self._inlets.values())
        if num_strangers > _MAX_STRANGERS:
            inlet.abort(EdgeLostError("too many come at once"))

    def hear(self, inlet: Inlet, token: Token, channel: int) -> None:
        """Put the channels of one token together; the last one makes the edge."""
        group = self._group_of(token)
        if group is None or channel in group:
            raise EdgeLostError("its token is not good, or not any more")
        group[channel] = inlet
        if len(group) == len(CHANNELS):
            self._admit([group[each] for each in range(len(CHANNELS))])

    def leave(self, inlet: Inlet) -> None:
        """Forget a stranger, and whoever came with it."""
        timer = self._inlets.pop(inlet)
        if not self._inlets:
            self._all_left.set()
        if timer.cancelled():
            return
        timer.cancel()
        log.warning("edge_stranger_left", reason=inlet.reason)
        for token, group in list(self._groups.items()):
            if inlet in group.values():
                del self._groups[token]
                for other in group.values():
                    other.abort(EdgeLostError("another channel of the edge was lost"))

    def _group_of(self, token: Token) -> dict[int, Inlet] | None:
        """Return the channels that came with a token so far; None where that is not good."""
        for known, group in self._groups.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return group
        if not self.tokens.redeem(token):
            return None
        return self._groups.setdefault(token, {})

    def _admit(self, inlets: list[Inlet]) -> None:
        self._groups = {token: group for token, group in self._groups.items() if inlets[0] not in group.values()}
        for inlet in inlets:
            self._inlets[inlet].cancel()  # which says that it is no stranger any more
        edge = TcpIncomingEdge(payload_timeout_s=self._payload_timeout_s)
        self._edges.add(edge)
        edge.lost.add_done_callback(lambda _: self._edges.discard(edge))
        edge.open(inlets)
        self._on_edge(edge)
