"""One decoded message, and how it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import msgspec

from broker_pipeline.errors import PipelineError, TransportError
from broker_pipeline.wire.wire_tensor import WireTensor

Body = TypeVar("Body", bound=msgspec.Struct)


class Answers(Protocol):
    """The part of `Transport` that answers take."""

    async def publish(
        self, subject: str, body: msgspec.Struct, tensors: Mapping[str, WireTensor] | None = None
    ) -> None:
        """Send an answer."""

    def refuse(self, reply: str, error: PipelineError) -> None:
        """Send an error."""


class Received(msgspec.Struct, Generic[Body], frozen=True):
    """One message. Its tensors are views of the receive buffer and keep it alive."""

    subject: str
    body: Body
    tensors: dict[str, WireTensor]
    reply: str
    """Where the sender wants an answer; empty when it wants none."""
    num_bytes: int
    answers: Answers
    arrived_ns: int = 0
    """When it had come, by the clock of all spans."""
    is_lent: bool = False
    """Whether the tensors lie in memory that the sender needs back soon: copy what is to be kept for long."""

    async def respond(self, body: msgspec.Struct, tensors: Mapping[str, WireTensor] | None = None) -> None:
        """Answer a request. Raises `TransportError` when the message asked for no answer or cannot be answered now."""
        if not self.reply:
            raise TransportError(f"a message on {self.subject} asks for no answer")
        await self.answers.publish(self.reply, body, tensors)

    def refuse(self, error: PipelineError) -> None:
        """Answer a request with an error, which is raised again where it was made. Raises `TransportError`."""
        if self.reply:
            self.answers.refuse(self.reply, error)
