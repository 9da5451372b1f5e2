"""Messages and requests of every size over a real nats-server."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import nats
import numpy as np
import pytest
from nats.aio.client import Client

from broker_pipeline.errors import (
    ConfigurationError,
    ContractError,
    ContractVersionError,
    KVPositionError,
    MalformedEnvelopeError,
    NoResponderError,
    PartError,
    PayloadTooLargeError,
    PipelineError,
    RequestTimeoutError,
    SlowConsumerError,
    TensorMismatchError,
    TransportError,
    _errors_by_code,
    error_from_failure,
)
from broker_pipeline.messages.base import TensorSpec
from broker_pipeline.messages.control import Hello
from broker_pipeline.messages.workers import TransportCounts
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.nats.message import header_block
from broker_pipeline.wire.nats.parts import PART_HEADER, PartHeader, whole_pieces
from broker_pipeline.wire.transport import Received, Transport
from broker_pipeline.wire.wire_tensor import WireTensor

MIB = 2**20
MAX_PAYLOAD = 8 * MIB
"""Of the shared server."""


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A body of any size, with tensors."""

    number: int = 0
    text: str = ""
    tensors: tuple[TensorSpec, ...] = ()


def floats(num_bytes: int) -> dict[str, WireTensor]:
    """One tensor of `num_bytes` random bytes (a multiple of 4, since nothing smaller travels)."""
    return {"hidden": WireTensor.from_numpy(np.frombuffer(os.urandom(num_bytes), np.float32))}


def whole(metadata: bytes) -> bytes:
    """A message without tensors, as it travels."""
    return b"".join(whole_pieces(Frame(metadata, (), 0)))


@asynccontextmanager
async def echo(transport: Transport, subject: str) -> AsyncIterator[None]:
    """Answers every request with what it brought."""

    async def serve() -> None:
        async for received in messages:
            await received.respond(received.body, received.tensors)

    async with transport.subscribe(subject, Note) as messages:
        server = asyncio.create_task(serve())
        try:
            yield
        finally:
            server.cancel()
            await asyncio.wait([server])


@pytest.fixture
async def raw(nats_url: str) -> AsyncIterator[Client]:
    """A client that may send anything."""
    client = await nats.connect(nats_url)
    yield client
    await client.close()


def give_up_soon(transport: Transport) -> None:
    """Wait for the next part of a message for next to no time."""
    for connection in (transport.link.small, transport.link.bulk):
        for listener in connection.receivers.values():
            listener.assembler.timeout_s = 0.05  # type: ignore[attr-defined]


async def next_of(messages: object, timeout_s: float = 5.0) -> Received[Note]:
    async with asyncio.timeout(timeout_s):
        received: Received[Note] = await anext(messages)  # type: ignore[call-overload]
        return received


# --- messages -------------------------------------------------------------------------------------------------------


async def test_a_message_arrives_as_it_was_sent(transport: Transport, namespace: str) -> None:
    tensors = {
        **floats(40),
        "empty": WireTensor.from_numpy(np.empty((0, 3), np.int32)),
        "positions": WireTensor.from_numpy(np.arange(9, dtype=np.int32).reshape(3, 3)),
    }
    text = 'ÄÖ\u2028 \r\n\x00 =?utf-8?q?x?= "x" \U0001f600 '
    async with transport.subscribe(f"{namespace}.a", Note) as messages:
        await transport.publish(f"{namespace}.a", Note(number=7, text=text), tensors)
        received = await next_of(messages)
    assert (received.body.number, received.body.text, received.reply) == (7, text, "")
    assert list(received.tensors) == list(tensors)
    assert all(received.tensors[name].data == tensors[name].data for name in tensors)
    assert received.tensors["positions"].to_numpy().tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


SIZES = [0, 4, 64 * 1024, 64 * 1024 + 4, MIB - 4, MIB, MIB + 4, MAX_PAYLOAD - 4, MAX_PAYLOAD, MAX_PAYLOAD + 4, 16 * MIB]


@pytest.mark.parametrize("num_bytes", SIZES)
async def test_payloads_of_every_size_in_both_directions(transport: Transport, namespace: str, num_bytes: int) -> None:
    tensors = floats(num_bytes)
    async with echo(transport, f"{namespace}.echo"):
        answer = await transport.request(
            f"{namespace}.echo", Note(number=num_bytes), tensors, reply_type=Note, timeout_s=20
        )
    assert answer.body.number == num_bytes
    assert answer.tensors["hidden"].data == tensors["hidden"].data


@pytest.mark.parametrize("ask_bytes", [0, 64 * 1024 + 4, 3 * MIB])
@pytest.mark.parametrize("answer_bytes", [0, 64 * 1024 + 4, 3 * MIB])
async def test_an_answer_may_be_of_another_size_than_its_request(
    transport: Transport, namespace: str, ask_bytes: int, answer_bytes: int
) -> None:
    async def answer() -> None:
        received = await anext(messages)
        await received.respond(Note(number=received.tensors["hidden"].data.nbytes), floats(answer_bytes))

    async with transport.subscribe(f"{namespace}.a", Note) as messages, asyncio.TaskGroup() as group:
        group.create_task(answer())
        got = await transport.request(f"{namespace}.a", Note(), floats(ask_bytes), reply_type=Note, timeout_s=10)
    assert (got.body.number, got.tensors["hidden"].data.nbytes) == (ask_bytes, answer_bytes)


@pytest.mark.parametrize("num_characters", [1, 16 * 1024 - 40, 16 * 1024, 70_000, MIB, MAX_PAYLOAD + 1])
async def test_bodies_of_every_size_in_both_directions(
    transport: Transport, namespace: str, num_characters: int
) -> None:
    body, tensors = Note(text="ü" * (num_characters // 2) + "x"), floats(20)
    async with echo(transport, f"{namespace}.echo"):
        answer = await transport.request(f"{namespace}.echo", body, tensors, reply_type=Note, timeout_s=20)
    assert answer.body.text == body.text
    assert answer.tensors["hidden"].data == tensors["hidden"].data


async def test_many_large_messages_at_once(transport: Transport, namespace: str) -> None:
    payloads = [floats(3 * MIB) for _ in range(8)]
    async with echo(transport, f"{namespace}.echo"):
        answers = await asyncio.gather(
            *(
                transport.request(f"{namespace}.echo", Note(), tensors, reply_type=Note, timeout_s=30)
                for tensors in payloads
            )
        )
    assert all(
        answer.tensors["hidden"].data == sent["hidden"].data for answer, sent in zip(answers, payloads, strict=True)
    )


async def test_wildcards_hear_large_messages_once(transport: Transport, namespace: str) -> None:
    async with (
        transport.subscribe(f"{namespace}.*.end", Note) as star,
        transport.subscribe(f"{namespace}.>", Note) as rest,
    ):
        await transport.publish(f"{namespace}.x.end", Note(number=1), floats(2 * MIB))
        await transport.publish(f"{namespace}.x.end", Note(number=2))
        for messages in (star, rest):
            assert {(await next_of(messages)).body.number for _ in range(2)} == {1, 2}
            assert messages.room.used_bytes == 0


async def test_small_messages_do_not_wait_behind_large_ones(nats_url: str, namespace: str) -> None:
    async with (
        Transport.open(nats_url, name="sender") as sender,
        Transport.open(nats_url, name="receiver") as receiver,
        receiver.subscribe(f"{namespace}.a", Note) as messages,
    ):
        large = asyncio.create_task(sender.publish(f"{namespace}.a", Note(number=1), floats(64 * MIB)))
        await asyncio.sleep(0)
        await sender.publish(f"{namespace}.a", Note(number=2), floats(8192))
        assert (await next_of(messages)).body.number == 2
        await large
        assert (await next_of(messages, 20)).body.number == 1


async def test_a_subscription_hears_what_is_sent_the_moment_it_is_open(nats_url: str, namespace: str) -> None:
    async with Transport.open(nats_url, name="sender") as sender, Transport.open(nats_url, name="receiver") as receiver:
        for turn in range(100):
            async with receiver.subscribe(f"{namespace}.{turn}", Note) as messages:
                await sender.publish(f"{namespace}.{turn}", Note(number=turn))
                await sender.publish(f"{namespace}.{turn}", Note(number=turn), floats(70_000))
                assert (await next_of(messages)).body.number == turn
                assert (await next_of(messages)).body.number == turn


async def test_tensors_may_change_once_publish_has_returned(transport: Transport, namespace: str) -> None:
    for num_floats in (100, MIB):
        array = np.ones(num_floats, np.float32)
        async with transport.subscribe(f"{namespace}.a", Note) as messages:
            await transport.publish(f"{namespace}.a", Note(), {"hidden": WireTensor.from_numpy(array)})
            array[:] = 0
            assert (await next_of(messages)).tensors["hidden"].to_numpy().all()


async def test_what_was_sent_before_leaving_arrives(nats_url: str, transport: Transport, namespace: str) -> None:
    async with transport.subscribe(f"{namespace}.a", Note) as messages:
        async with Transport.open(nats_url, name="leaving") as leaving:
            await leaving.publish(f"{namespace}.a", Note(number=1), floats(12 * MIB))
            await leaving.publish(f"{namespace}.a", Note(number=2))
        assert {(await next_of(messages)).body.number for _ in range(2)} == {1, 2}


async def test_iterating_ends_with_the_subscription(transport: Transport, namespace: str) -> None:
    async with transport.subscribe(f"{namespace}.a", Note) as messages:
        reader = asyncio.create_task(anext(messages, None))
        await asyncio.sleep(0)
    assert await reader is None
    assert [received async for received in messages] == []


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bytes", [0, 3 * MIB])
async def test_nobody_there_is_known_at_once(transport: Transport, namespace: str, num_bytes: int) -> None:
    started = time.monotonic()
    with pytest.raises(NoResponderError, match=f"{namespace}.nobody"):
        await transport.request(f"{namespace}.nobody", Note(), floats(num_bytes), reply_type=Note, timeout_s=10)
    assert time.monotonic() - started < 2


async def test_an_answer_that_does_not_come(transport: Transport, namespace: str) -> None:
    async with transport.subscribe(f"{namespace}.silent", Note) as messages:
        with pytest.raises(RequestTimeoutError, match=r"within 0\.2 s"):
            await transport.request(f"{namespace}.silent", Note(), reply_type=Note, timeout_s=0.2)
        late = await next_of(messages)
        await late.respond(Note(number=1))  # nobody waits any more, and nothing breaks
        assert not transport.link._inbox._futures


async def test_a_refusal_is_raised_where_the_request_was_made(transport: Transport, namespace: str) -> None:
    async def refuse() -> None:
        received = await anext(messages)
        received.refuse(KVPositionError("starts at 7, but 5 are cached", field="start"))

    async with transport.subscribe(f"{namespace}.a", Note) as messages, asyncio.TaskGroup() as group:
        group.create_task(refuse())
        with pytest.raises(KVPositionError, match="starts at 7") as refusal:
            await transport.request(f"{namespace}.a", Note(), reply_type=Note, timeout_s=5)
        assert (refusal.value.field, refusal.value.retryable) == ("start", True)


async def test_a_message_without_reply_cannot_be_answered(transport: Transport, namespace: str) -> None:
    async with transport.subscribe(f"{namespace}.a", Note) as messages:
        await transport.publish(f"{namespace}.a", Note())
        received = await next_of(messages)
        with pytest.raises(TransportError, match="asks for no answer"):
            await received.respond(Note())


@pytest.mark.parametrize(
    ("headers", "payload", "expected"),
    [
        ({}, b"", MalformedEnvelopeError),
        ({}, b"\xff\xff\xff\xff", MalformedEnvelopeError),
        ({}, whole(b"{"), MalformedEnvelopeError),
        ({}, whole(b'{"nummer":1}'), MalformedEnvelopeError),
        ({"Bp-Metadata": '{"number":1}'}, b"", ContractVersionError),
        ({"Bp-Failure": "{"}, b"", MalformedEnvelopeError),
        ({"Bp-Failure": '{"code":"kv_capacity","message":"full"}'}, b"", PipelineError),
        ({"Bp-Failure": '{"code":"from the future","message":"?"}'}, b"", PipelineError),
        ({PART_HEADER: "{}"}, b"", PartError),
        ({PART_HEADER: '{"message":"a","index":3,"count":4,"num_bytes":9}'}, b"", PartError),
    ],
)
async def test_an_answer_that_is_none(
    transport: Transport,
    raw: Client,
    namespace: str,
    headers: dict[str, str],
    payload: bytes,
    expected: type[Exception],
) -> None:
    async def answer(msg: nats.aio.msg.Msg) -> None:
        await raw.publish(msg.reply, payload, headers=headers or None)

    await raw.subscribe(f"{namespace}.bad", cb=answer)
    await raw.flush()
    await raw.flush()
    with pytest.raises(expected):
        await transport.request(f"{namespace}.bad", Note(), reply_type=Note, timeout_s=5)


# --- what breaks the contract ---------------------------------------------------------------------------------------


async def test_malformed_messages_are_told_counted_and_do_not_stop_the_reader(
    transport: Transport, raw: Client, namespace: str
) -> None:
    told: list[ContractError] = []
    async with transport.subscribe(
        f"{namespace}.a", Note, on_malformed=lambda error, _reply: told.append(error)
    ) as messages:
        await raw.publish(f"{namespace}.a", b"no metadata")
        await raw.publish(f"{namespace}.a", whole(b'{"numbr":1}'))
        await raw.publish(f"{namespace}.a", whole(b'{"number":1}') + b"extra")
        await raw.publish(f"bulk.{namespace}.a", b"x", headers={PART_HEADER: "?"})
        await raw.flush()
        await raw.flush()
        await transport.publish(f"{namespace}.a", Note(number=5))
        assert (await next_of(messages)).body.number == 5
        await transport.link.bulk.barrier()
        assert transport.counts == TransportCounts(num_malformed=3, num_incomplete=1)
        assert sorted(type(error).__name__ for error in told) == [
            "MalformedEnvelopeError",
            "MalformedEnvelopeError",
            "PartError",
            "TensorMismatchError",
        ]


async def test_a_malformed_request_is_answered(transport: Transport, namespace: str) -> None:
    async with transport.subscribe(f"{namespace}.a", Note):
        with pytest.raises(MalformedEnvelopeError, match="Note: Object contains unknown field `version`"):
            await transport.request(f"{namespace}.a", Hello(pipeline="main"), reply_type=Note, timeout_s=5)


def part(message: str, index: int, count: int, num_bytes: int) -> dict[str, str]:
    header = PartHeader(message=message, index=index, count=count, num_bytes=num_bytes)
    return {PART_HEADER: msgspec.json.encode(header).decode()}


async def test_a_request_with_a_hole_is_answered(transport: Transport, raw: Client, namespace: str) -> None:
    async with transport.subscribe(f"{namespace}.a", Note) as messages:
        inbox = raw.new_inbox()
        answers = await raw.subscribe(inbox)
        for index in (0, 2):
            await raw.publish(f"bulk.{namespace}.a", b"x" * 10, inbox, headers=part("m", index, 3, 30))
        answer = await answers.next_msg(timeout=5)
        assert b'"code":"part"' in answer.headers["Bp-Failure"].encode()
        assert messages.room.used_bytes == 0


async def test_a_request_that_stops_half_way_is_answered_at_the_deadline(
    transport: Transport, raw: Client, namespace: str
) -> None:
    async with transport.subscribe(f"{namespace}.a", Note) as messages:
        give_up_soon(transport)
        inbox = raw.new_inbox()
        answers = await raw.subscribe(inbox)
        await raw.publish(f"bulk.{namespace}.a", b"x" * 10, inbox, headers=part("m", 0, 3, 30))
        answer = await answers.next_msg(timeout=5)
        assert "never came in time" in answer.headers["Bp-Failure"]
        assert messages.room.used_bytes == 0


async def test_an_answer_that_stops_half_way_fails_the_request(
    transport: Transport, raw: Client, namespace: str
) -> None:
    give_up_soon(transport)

    async def answer(msg: nats.aio.msg.Msg) -> None:
        await raw.publish(msg.reply, b"x" * 10, headers=part("m", 0, 3, 30))

    await raw.subscribe(f"{namespace}.half", cb=answer)
    await raw.flush()
    await raw.flush()
    with pytest.raises(PartError, match="part 1 of 3 never came in time"):
        await transport.request(f"{namespace}.half", Note(), reply_type=Note, timeout_s=10)


# --- bounds ---------------------------------------------------------------------------------------------------------


async def test_a_message_beyond_the_limit_is_refused_before_anything_is_sent(nats_url: str, namespace: str) -> None:
    async with (
        Transport.open(nats_url, name="test", max_message_bytes=2 * MIB) as transport,
        transport.subscribe(f"{namespace}.a", Note) as messages,
    ):
        with pytest.raises(PayloadTooLargeError, match="are sent"):
            await transport.publish(f"{namespace}.a", Note(), floats(2 * MIB + 4))
        await transport.publish(f"{namespace}.a", Note(number=1))
        assert (await next_of(messages)).body.number == 1


async def test_one_nats_message_beyond_max_payload_is_refused_and_the_connection_lives(
    transport: Transport, namespace: str
) -> None:
    small = transport.link.small
    with pytest.raises(PayloadTooLargeError, match="max_payload"):
        await small.publish(f"{namespace}.a", bytes(MAX_PAYLOAD - 10), headers=header_block({"X": "y" * 100}))
    await small.barrier()


async def test_a_slow_reader_is_told_what_it_missed(transport: Transport, namespace: str) -> None:
    async with transport.subscribe(f"{namespace}.a", Note, max_pending_bytes=100_000) as messages:
        for number in range(10):
            await transport.publish(f"{namespace}.a", Note(number=number), floats(30_000))
        await transport.link.small.barrier()
        got = [(await next_of(messages)).body.number for _ in range(3)]
        assert got == [0, 1, 2]
        with pytest.raises(SlowConsumerError, match=r"7 messages \(210\d\d\d bytes\)"):
            await next_of(messages)
        await transport.publish(f"{namespace}.a", Note(number=99), floats(30_000))
        assert (await next_of(messages)).body.number == 99
        assert transport.counts == TransportCounts(num_dropped=7)


async def test_a_slow_reader_may_take_drops_with_their_bodies(transport: Transport, namespace: str) -> None:
    told: list[tuple[SlowConsumerError, Note | None]] = []
    async with transport.subscribe(
        f"{namespace}.a",
        Note,
        max_pending_bytes=3 * MIB,
        on_dropped=lambda error, body: told.append((error, body)),
    ) as messages:
        for number in range(4):
            await transport.publish(f"{namespace}.a", Note(number=number), floats(2 * MIB))
        await transport.link.bulk.barrier()
        assert [body.number for _, body in told if body] == [1, 2, 3]
        assert (await next_of(messages)).body.number == 0
        assert messages.room.used_bytes == 0


@pytest.mark.parametrize("num_bytes", [30_000, 2 * MIB])
async def test_a_dropped_request_is_answered(transport: Transport, namespace: str, num_bytes: int) -> None:
    async with transport.subscribe(f"{namespace}.a", Note, max_pending_bytes=num_bytes + 10_000):
        await transport.publish(f"{namespace}.a", Note(), floats(num_bytes))
        with pytest.raises(SlowConsumerError, match="no room"):
            await transport.request(f"{namespace}.a", Note(), floats(num_bytes), reply_type=Note, timeout_s=5)


@pytest.mark.parametrize("num_bytes", [60_000, 2 * MIB])
async def test_a_request_that_can_never_fit_is_answered_so(
    transport: Transport, namespace: str, num_bytes: int
) -> None:
    async with transport.subscribe(f"{namespace}.a", Note, max_pending_bytes=50_000):
        with pytest.raises(ContractError, match="bytes"):
            await transport.request(f"{namespace}.a", Note(), floats(num_bytes), reply_type=Note, timeout_s=5)


async def test_a_fast_sender_is_slowed_down_and_keeps_little(nats_url: str, namespace: str) -> None:
    async with Transport.open(nats_url, name="test") as transport:
        small, most = transport.link.small, 0
        for number in range(400):
            await transport.publish(f"{namespace}.nobody", Note(number=number), floats(60_000))
            most = max(most, small.socket.unsent_bytes)
        assert most < 5 * MIB


# --- addresses ------------------------------------------------------------------------------------------------------


async def test_no_server_there() -> None:
    started = time.monotonic()
    with pytest.raises(
        TransportError, match=r"no NATS server at nats://127\.0\.0\.1:1 .*Connect call failed"
    ) as failure:
        async with Transport.open("nats://user:secret@127.0.0.1:1", name="test", connect_timeout_s=0.5):
            pass
    assert "secret" not in str(failure.value)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("url", ["", "nats://", "nats://:x", "nats://a:b", "http://a", "nats://a:99999", "nats://a,:"])
async def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="looks like") as failure:
        async with Transport.open(url, name="test"):
            pass
    assert failure.value.field == "nats_url"


async def test_the_first_of_several_servers_may_be_away(nats_url: str) -> None:
    async with Transport.open(f"nats://127.0.0.1:1, {nats_url}", name="test") as transport:
        assert transport.is_connected
        assert transport.link.small.max_payload == MAX_PAYLOAD


def test_every_error_travels() -> None:
    for error in (TensorMismatchError("x", field="y"), SlowConsumerError("x"), PayloadTooLargeError("x")):
        again = error_from_failure(error.to_failure())
        assert type(again) is type(error)
        assert (str(again), again.field) == (str(error), error.field)


def test_a_class_without_a_code_of_its_own_is_no_failures_class() -> None:
    class OwnError(TransportError):
        """Raised and caught within one process."""

    _errors_by_code.cache_clear()
    assert type(error_from_failure(OwnError("gone").to_failure())) is TransportError
