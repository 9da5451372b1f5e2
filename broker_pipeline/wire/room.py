"""The bytes that may wait for one reader, whole or in parts, whatever brings them."""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.errors import MalformedEnvelopeError, SlowConsumerError

OVERHEAD_BYTES = 1024
"""What a message is taken to cost alongside its bytes, so that empty ones are bounded as well."""


@dataclass(slots=True)
class Room:
    """So many bytes in all, and so many for one message."""

    max_bytes: int
    max_message_bytes: int
    used_bytes: int = 0

    def __post_init__(self) -> None:
        self.max_message_bytes = min(self.max_message_bytes, self.max_bytes - OVERHEAD_BYTES)

    def take(self, num_bytes: int) -> None:
        """Take the room of a message: `MalformedEnvelopeError` when it never fits, `SlowConsumerError` when not now."""
        used_bytes = self.used_bytes + num_bytes + OVERHEAD_BYTES
        if num_bytes > self.max_message_bytes:
            raise MalformedEnvelopeError(
                f"a message of {num_bytes} bytes; at most {self.max_message_bytes} are taken here", field="num_bytes"
            )
        if used_bytes > self.max_bytes:
            raise SlowConsumerError(
                f"no room for a message of {num_bytes} bytes: {self.used_bytes} of {self.max_bytes} are taken"
            )
        self.used_bytes = used_bytes

    def free(self, num_bytes: int) -> None:
        """Give back what `take` took."""
        self.used_bytes -= num_bytes + OVERHEAD_BYTES
