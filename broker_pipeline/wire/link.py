"""What carries messages between processes: NATS. Payloads may take an edge instead (`wire.edges`), metadata never.

    Transport ── Frame ──► Link.publish ── … ──► Link.listen ── Message ──► Receiver

A link moves bytes; what they mean is decided above it. How it cuts, addresses and joins them is decided below.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from broker_pipeline.errors import ContractError, SlowConsumerError, TransportError
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.room import Room


class Message(msgspec.Struct):
    """A whole message as it arrived."""

    metadata: memoryview
    payload: memoryview
    reply: str
    """Where the sender wants an answer; empty when it wants none."""
    num_bytes: int
    """What was taken of the receiver's room, to be freed once the message has been read."""
    is_lent: bool = False
    """Whether the payload lies in memory that an edge needs back soon, with the last view of it."""
    subject: str = ""
    """What it was published to, which may be one of many that the receiver listens on."""


class Receiver(Protocol):
    """Takes what arrives, on the event loop and without waiting. What it raises otherwise is a bug: the link ends."""

    room: Room
    """A link takes a message's room here before it gives the message memory."""

    def on_message(self, message: Message) -> None:
        """Take a message. `ContractError`: it cannot be read; the link then frees its room and says `on_malformed`."""

    def on_malformed(self, error: ContractError, reply: str) -> None:
        """Hear of a message that cannot be read, or will never be whole."""

    def on_dropped(self, error: SlowConsumerError, metadata: memoryview, num_bytes: int, reply: str) -> None:
        """Hear of a message that found no room; `metadata` is empty where it is not known."""


BARRIER_TIMEOUT_S = 30.0


class Link(Protocol):
    """One way between processes, in both directions. It keeps the order of messages of about the same size."""

    @property
    def is_connected(self) -> bool:
        """Whether messages can be sent at this moment."""

    async def publish(self, subject: str, frame: Frame, reply: str = "") -> None:
        """Send a message to whoever listens; its bytes may change again once this returns.

        Waits while too much is unsent. Raises `PayloadTooLargeError` before anything is sent, `TransportError` when
        nothing can be sent now.
        """

    def listen(self, subject: str, receiver: Receiver) -> AbstractAsyncContextManager[None]:
        """Give the receiver what is sent to a subject while the context is open; sure to come after a `barrier`."""

    async def barrier(self, timeout_s: float = BARRIER_TIMEOUT_S) -> None:
        """Return when everything before (messages, subjects listened on) has taken effect on the way.

        Raises `TransportError` after `timeout_s` seconds.
        """

    def on_lost(self, listener: Callable[[TransportError], None]) -> None:
        """Call `listener` once, when the link is gone for good or where it is already."""
