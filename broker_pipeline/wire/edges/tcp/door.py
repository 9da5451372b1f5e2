"""Who comes with a good token, on every channel, becomes an edge; everybody else is sent away.

offer(token) ──NATS──► dialer ── hello(token, channel), one a channel ──► all there? ──► TcpIncomingEdge ──► on_edge
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, field

import structlog

from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.edges import EdgeAsk, Token
from broker_pipeline.subjects import host_of
from broker_pipeline.wire.edges.edge import OnEdge
from broker_pipeline.wire.edges.tcp.incoming import TcpIncomingEdge
from broker_pipeline.wire.edges.tcp.inlet import Inlet
from broker_pipeline.wire.edges.tcp.layout import CHANNELS
from broker_pipeline.wire.edges.tokens import Tokens

log = structlog.get_logger()

_MAX_STRANGERS = 64 * len(CHANNELS)


@dataclass(frozen=True, slots=True)
class _Group:
    """The channels that came with one token so far, and who asked for it."""

    ask: EdgeAsk
    inlets: dict[int, Inlet] = field(default_factory=dict)


class Door:
    """The strangers at a port, and the edges that some of them became."""

    def __init__(
        self, on_edge: OnEdge, *, hello_timeout_s: float, payload_timeout_s: float, is_vouched: bool = False
    ) -> None:
        """Tell `on_edge` of each edge that stands.

        Where an authority vouches for everybody, workers come with certificates of the hosts in their names.
        """
        self._is_vouched = is_vouched
        self.tokens = Tokens()
        self._on_edge = on_edge
        self._hello_timeout_s, self._payload_timeout_s = hello_timeout_s, payload_timeout_s
        self._inlets: dict[Inlet, asyncio.TimerHandle] = {}
        self._all_left = asyncio.Event()
        self._groups: dict[Token, _Group] = {}
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
        if group is None or channel in group.inlets:
            raise EdgeLostError("its token is not good, or not any more")
        if inlet.certificate != group.ask.certificate:
            raise EdgeLostError("its certificate is not the one that it announced")
        if self._is_vouched and inlet.host != (host := host_of(group.ask.root)):
            raise EdgeLostError(f"its certificate is of {inlet.host!r}, and it says that it is a worker of {host!r}")
        group.inlets[channel] = inlet
        if len(group.inlets) == len(CHANNELS):
            self._admit(group)

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
            if inlet in group.inlets.values():
                del self._groups[token]
                for other in group.inlets.values():
                    other.abort(EdgeLostError("another channel of the edge was lost"))

    def _group_of(self, token: Token) -> _Group | None:
        """Return the channels that came with a token so far; None where that is not good."""
        for known, group in self._groups.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return group
        ask = self.tokens.redeem(token)
        return None if ask is None else self._groups.setdefault(token, _Group(ask))

    def _admit(self, group: _Group) -> None:
        self._groups = {token: each for token, each in self._groups.items() if each is not group}
        inlets = [group.inlets[channel] for channel in range(len(CHANNELS))]
        for inlet in inlets:
            self._inlets[inlet].cancel()  # which says that it is no stranger any more
        edge = TcpIncomingEdge(peer=group.ask.root, payload_timeout_s=self._payload_timeout_s)
        self._edges.add(edge)
        edge.lost.add_done_callback(lambda _: self._edges.discard(edge))
        edge.open(inlets)
        self._on_edge(edge)
