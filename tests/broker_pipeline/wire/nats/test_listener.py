"""What becomes of NATS messages that break off, break the contract, or find no room."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

from broker_pipeline.errors import ContractError, PartError, PipelineError, TensorMismatchError
from broker_pipeline.messages.base import TensorSpec
from broker_pipeline.wire.codec import encode
from broker_pipeline.wire.edges.incoming import IncomingEdges
from broker_pipeline.wire.nats.listener import NatsListener
from broker_pipeline.wire.nats.message import NatsMessage
from broker_pipeline.wire.nats.parts import cut, whole_pieces
from broker_pipeline.wire.room import OVERHEAD_BYTES, Room
from broker_pipeline.wire.subscription import Subscription
from broker_pipeline.wire.transport import Transport
from broker_pipeline.wire.wire_tensor import WireTensor


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    number: int
    tensors: tuple[TensorSpec, ...] = ()


class Heard:
    """A listener, the subscription that it tells, and all that this says."""

    def __init__(self, transport: Transport, max_bytes: int = 100_000) -> None:
        self.dropped: list[Note | None] = []
        self.malformed: list[ContractError] = []
        self.lost: Counter[type[PipelineError]] = Counter()
        self.subscription = Subscription(
            "a",
            Note,
            transport,
            Room(max_bytes, max_bytes),
            self.lost,
            on_malformed=lambda error, _reply: self.malformed.append(error),
            on_dropped=lambda _error, body: self.dropped.append(body),
        )
        self.listener = NatsListener(self.subscription, IncomingEdges())


def parts_of(number: int, num_bytes: int, size: int = 1000) -> list[NatsMessage]:
    tensors = {"hidden": WireTensor("float32", (num_bytes // 4,), memoryview(bytes(num_bytes)))}
    frame = encode(Note(number=number), tensors)
    return [NatsMessage("a", "", part.headers, b"".join(part.pieces)) for part in cut(frame, size, f"m{number}")]


def whole_of(number: int) -> NatsMessage:
    return NatsMessage("a", "", b"", b"".join(whole_pieces(encode(Note(number=number)))))


async def test_room_is_taken_by_what_waits_and_freed_by_whoever_reads(transport: Transport) -> None:
    heard = Heard(transport)
    for part in parts_of(1, 4000):
        heard.listener.on_message(part)
    heard.listener.on_message(whole_of(2))
    assert heard.subscription.room.used_bytes > 4000 + 2 * OVERHEAD_BYTES
    assert [(await anext(heard.subscription)).body.number for _ in range(2)] == [1, 2]
    assert heard.subscription.room.used_bytes == 0


async def test_what_breaks_the_contract_takes_no_room(transport: Transport) -> None:
    heard = Heard(transport)
    message = whole_of(1)
    heard.listener.on_message(NatsMessage("a", "", b"", bytes(message.payload) + b"more"))
    assert [type(error) for error in heard.malformed] == [TensorMismatchError]
    assert heard.subscription.room.used_bytes == 0


async def test_of_a_large_message_without_room_the_first_part_says_whom_it_concerns(transport: Transport) -> None:
    heard = Heard(transport, max_bytes=6000)
    for part in (*parts_of(1, 3000), *parts_of(2, 3000)):
        heard.listener.on_message(part)
    assert [note and note.number for note in heard.dropped] == [2], "once, not for each part"
    assert (await anext(heard.subscription)).body.number == 1


@pytest.mark.parametrize("is_lost", [True, False])
async def test_what_has_begun_is_given_up_with_its_connection_or_at_its_deadline(
    transport: Transport, is_lost: bool
) -> None:
    heard = Heard(transport)
    first, second, *_ = parts_of(1, 3000)
    heard.listener.on_message(first)
    if is_lost:
        heard.listener.on_lost()
    else:
        heard.listener.expire(asyncio.get_running_loop().time() + heard.listener.assembler.timeout_s)
    heard.listener.on_message(second)  # told already
    assert heard.lost == {PartError: 1}
    assert heard.subscription.room.used_bytes == 0
