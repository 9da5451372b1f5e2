"""nats-py's JetStream over one connection, with what its users need to know of that."""

from __future__ import annotations

from nats.aio.client import Client
from nats.js.client import JetStreamContext

from broker_pipeline.wire.nats.parts import payload_bytes


class JetStream(JetStreamContext):
    """All that storage sees of a connection."""

    def __init__(self, client: Client, *, timeout_s: float) -> None:
        """Speak over `client`; the server answers within `timeout_s` seconds."""
        super().__init__(client, timeout=timeout_s)
        self.client = client
        """For messages between JetStream and an inbox of one's own."""

    @property
    def max_message_bytes(self) -> int:
        """Most bytes of one stored message, headers not counted; may change with a reconnect."""
        return payload_bytes(self.client.max_payload)
