"""What comes over one connection for one subject: NATS messages become a receiver's messages.

NATS message ─┬─ whole ─► room? ──────────────┬─► on_message
              └─ part ──► join: room? ─ last? ─┘        on_malformed, on_dropped: what broke, or found no room
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from broker_pipeline.errors import ContractError, ContractVersionError, SlowConsumerError
from broker_pipeline.messages.base import CONTRACT_VERSION
from broker_pipeline.wire.link import Message, Receiver
from broker_pipeline.wire.nats.assembler import Abandoned, Assembler
from broker_pipeline.wire.nats.message import NatsMessage, read_headers
from broker_pipeline.wire.nats.parts import PART_HEADER, open_whole, part_header, read_part_header

_VERSION_1_HEADER = "Bp-Metadata"


class NatsListener:
    """Takes NATS messages of one subscription, joins parts, and takes their room."""

    def __init__(self, receiver: Receiver) -> None:
        """Tell `receiver` everything."""
        self.assembler = Assembler(receiver.room)
        self._receiver = receiver

    def place(self, headers: bytes, num_bytes: int) -> memoryview | None:
        """Say where a part that is about to be read belongs."""
        part = part_header(headers)
        return self.assembler.place(part, num_bytes) if part else None

    def on_message(self, message: NatsMessage) -> None:
        """Take one NATS message: a whole one, or a part."""
        try:
            content = self._whole(message)
            if content is not None:
                self._hand_over(content, message.reply)
        except SlowConsumerError as error:
            self._drop(error, message)
        except ContractError as error:
            self._receiver.on_malformed(error, message.reply)

    def expire(self, now: float) -> None:
        """Give up messages whose parts stopped coming."""
        self._tell(self.assembler.expire(now))

    def on_lost(self) -> None:
        """Give up messages whose remaining parts were on the connection that is gone."""
        self._tell(self.assembler.abandon_all())

    def _whole(self, message: NatsMessage) -> bytes | memoryview | None:
        """Return the message that a NATS message is, or completes; its room is taken then."""
        if message.headers:
            headers = read_headers(message.headers)
            if _VERSION_1_HEADER in headers:
                raise ContractVersionError(
                    f"the sender speaks version 1 of the contract, this process {CONTRACT_VERSION}; "
                    "run the same release everywhere",
                    field="version",
                )
            if (part := headers.get(PART_HEADER)) is not None:
                now = asyncio.get_running_loop().time()
                return self.assembler.add(read_part_header(part), message.payload, message.reply, now=now)
        self._receiver.room.take(len(message.payload))
        return message.payload

    def _hand_over(self, content: bytes | memoryview, reply: str) -> None:
        num_bytes = len(content)
        try:
            self._receiver.on_message(Message(*open_whole(content), reply, num_bytes))
        except ContractError:
            self._receiver.room.free(num_bytes)
            raise

    def _drop(self, error: SlowConsumerError, message: NatsMessage) -> None:
        part = part_header(message.headers)
        try:
            metadata, _ = open_whole(message.payload)  # all of it is there, in a first part as well
        except ContractError:
            metadata = memoryview(b"")
        num_bytes = part.num_bytes if part else len(message.payload)
        self._receiver.on_dropped(error, metadata, num_bytes, message.reply)

    def _tell(self, abandoned: Iterable[Abandoned]) -> None:
        for error, reply in abandoned:
            self._receiver.on_malformed(error, reply)
