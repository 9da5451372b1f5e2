"""What an edge is: a way for payloads from one worker straight to another.

    sender    EdgeDialer.connect(offer) ──► OutgoingEdge.send(frame) ──► EdgeRef, sent with the metadata over NATS
    receiver  EdgeServer ──on_edge──► IncomingEdge.take(ref) ──► the payload, now or in a moment

An edge goes one way, belongs to one pair of processes, and may be lost, full or slow at any time: the message then goes
whole over NATS. The receiver names an edge; nobody but who was told the name while connecting can refer to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.edges import EdgeAsk, EdgeKind, EdgeOffer, EdgeRef
from broker_pipeline.wire.codec import Frame

OnEdge = Callable[["IncomingEdge"], None]
"""Hears of each edge that stands; whoever is told keeps it until its `lost` is done."""

OnPeerLost = Callable[[str], None]
"""Hears by the root of its subjects of a process to or from which an edge ended that this end had not closed."""

NOBODY = EdgeAsk(kinds=())
"""Who asks without saying anything."""

LINGER_S = 3.0
"""How long what came by an edge can be taken after its loss: messages that refer to it may still be under way."""


class OutgoingEdge(Protocol):
    """The sender's end."""

    @property
    def kind(self) -> EdgeKind:
        """What carries it."""

    @property
    def lost(self) -> asyncio.Future[EdgeLostError]:
        """Gets its result when the edge can carry nothing more, by whatever reason; never an exception."""

    def place(self, num_bytes: int) -> memoryview | None:
        """Return room for a payload that does not exist yet, or None: this edge has none now, or never. Thread-safe.

        The bytes written to its beginning are not copied when a frame whose first piece they are is sent; there is room
        for the rest of that payload behind it, up to `num_bytes`. It is given back when the last view of it is gone.
        """

    async def send(self, frame: Frame) -> EdgeRef:
        """Carry a frame's payload, which is not empty; its bytes may change again once this returns.

        Raises `EdgeFullError` when there is no room now, without waiting longer than a send over NATS would take;
        `EdgeLostError` when the edge is gone.
        """

    async def close(self) -> None:
        """End the edge; what was sent remains good. May be called twice."""


class IncomingEdge(Protocol):
    """The receiver's end."""

    @property
    def kind(self) -> EdgeKind:
        """What carries it."""

    @property
    def name(self) -> str:
        """What refs call it: not to be guessed."""

    @property
    def peer(self) -> str:
        """Root of the sender's subjects; empty where it did not say."""

    @property
    def lost(self) -> asyncio.Future[EdgeLostError]:
        """Gets its result when nothing more can come. What came can be taken for some seconds longer."""

    def take(self, ref: EdgeRef) -> memoryview | asyncio.Future[memoryview]:
        """Return the payload of a ref; each can be taken once. Its memory is freed with the last view of it.

        A future where it may still be under way. It gets `EdgeLostError` at once where the edge is lost first; whoever
        waits has a budget and cancels it then. Raises `PartError` where the ref is wrong, or taken, or can never come.
        """


class EdgeServer(AbstractAsyncContextManager["EdgeServer"], Protocol):
    """Listens while its context is open, and tells an `OnEdge` of each edge that stands. Its edges end with it."""

    def offer(self, offer: EdgeOffer, ask: EdgeAsk = NOBODY) -> EdgeOffer:
        """Return `offer` with this kind's part filled in, token included; unchanged when no more edges are allowed."""


class EdgeDialer(Protocol):
    """Makes the sender's ends of one kind of edge."""

    @property
    def kind(self) -> EdgeKind:
        """Which part of an offer it reads."""

    async def connect(self, offer: EdgeOffer, root: str = "") -> OutgoingEdge | None:
        """Return an edge to the worker with this root of subjects, which made the offer.

        None where the offer has no such part or nobody can be reached there.

        Raises `EdgeLostError` where somebody was reached and it failed then; the message says why.
        """
