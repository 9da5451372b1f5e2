"""What comes over one connection for one subject: NATS messages become a receiver's messages.

NATS message ─┬─ whole ─► room? ───────────────┬─► payload by an edge? ─► room? ─► there? ─┬─► on_message
              └─ part ──► join: room? ─ last? ──┘                └───────────────────────────┘
                                                  on_malformed, on_dropped: what broke, or found no room
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from broker_pipeline.errors import ContractError, ContractVersionError, PartError, PipelineError, SlowConsumerError
from broker_pipeline.messages.base import CONTRACT_VERSION
from broker_pipeline.wire.edges.incoming import IncomingEdges
from broker_pipeline.wire.edges.pending_payloads import PendingPayloads
from broker_pipeline.wire.link import Message, Receiver
from broker_pipeline.wire.nats.assembler import Abandoned, Assembler
from broker_pipeline.wire.nats.message import NatsMessage, read_headers
from broker_pipeline.wire.nats.parts import (
    EDGE_HEADER,
    PART_HEADER,
    open_whole,
    part_header,
    read_edge_header,
    read_part_header,
)

_VERSION_1_HEADER = "Bp-Metadata"


class NatsListener:
    """Takes NATS messages of one subscription, joins parts, and takes their room."""

    def __init__(self, receiver: Receiver, edges: IncomingEdges) -> None:
        """Tell `receiver` everything; `edges` have the payloads that do not come with their metadata."""
        self.assembler = Assembler(receiver.room)
        self._receiver = receiver
        self._edges = edges
        self._pending = PendingPayloads()

    def place(self, headers: bytes, num_bytes: int) -> memoryview | None:
        """Say where a part that is about to be read belongs."""
        part = part_header(headers)
        return self.assembler.place(part, num_bytes) if part else None

    def on_message(self, message: NatsMessage) -> None:
        """Take one NATS message: a whole one, or a part."""
        headers = read_headers(message.headers) if message.headers else {}
        try:
            content = self._whole(message, headers)
            if content is not None:
                self._find_payload(content, headers.get(EDGE_HEADER), message)
        except SlowConsumerError as error:
            self._drop(error, message)
        except ContractError as error:
            self._receiver.on_malformed(error, message.reply)

    def expire(self, now: float) -> None:
        """Give up messages whose parts stopped coming."""
        self._tell(self.assembler.expire(now))
        self._pending.expire(now)

    def on_lost(self) -> None:
        """Give up messages whose remaining parts were on the connection that is gone."""
        self._tell(self.assembler.abandon_all())

    def _whole(self, message: NatsMessage, headers: Mapping[str, str]) -> bytes | memoryview | None:
        """Return the message that a NATS message is, or completes; its room is taken then."""
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

    def _find_payload(self, content: bytes | memoryview, edge_header: str | None, message: NatsMessage) -> None:
        """Hand a message over with its payload, which is part of it or by an edge, there already or in a moment."""
        num_bytes, room = len(content), self._receiver.room
        if edge_header is None:
            self._open(content, None, message, num_bytes)
            return
        room.free(num_bytes)
        ref = read_edge_header(edge_header)
        payload = self._edges.take(ref)
        try:
            room.take(num_bytes + ref.num_bytes)
        except PipelineError:
            if isinstance(payload, asyncio.Future):
                payload.cancel()
            raise
        if isinstance(payload, memoryview):
            self._open(content, payload, message, num_bytes + ref.num_bytes)
            return
        deadline = asyncio.get_running_loop().time() + self.assembler.timeout_s
        self._pending.wait(
            payload, deadline, lambda found: self._on_payload(content, found, message, num_bytes + ref.num_bytes)
        )

    def _on_payload(
        self, content: bytes | memoryview, found: memoryview | PartError, message: NatsMessage, num_bytes: int
    ) -> None:
        try:
            if isinstance(found, PartError):
                self._receiver.room.free(num_bytes)
                raise found
            self._open(content, found, message, num_bytes)
        except ContractError as error:
            self._receiver.on_malformed(error, message.reply)

    def _open(
        self, content: bytes | memoryview, payload: memoryview | None, message: NatsMessage, num_bytes: int
    ) -> None:
        """Hand a whole message over; `payload` is None where it is part of the content."""
        try:
            metadata, rest = open_whole(content)
            if payload is not None and rest:
                raise PartError(f"a message has {len(rest)} bytes of payload, and another one by an edge", field="edge")
            is_lent, payload = payload is not None, rest if payload is None else payload
            self._receiver.on_message(Message(metadata, payload, message.reply, num_bytes, is_lent, message.subject))
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
