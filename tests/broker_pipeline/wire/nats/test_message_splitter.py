"""A server's bytes taken apart, however they come."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from dataclasses import dataclass, field

import nats.errors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.wire.nats.message import NatsMessage
from broker_pipeline.wire.nats.message_splitter import BUFFER_BYTES, LARGE_BYTES, MAX_BYTES, MessageSplitter

SIZES = [0, 1, 17, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, BUFFER_BYTES - 50, BUFFER_BYTES, 3 * BUFFER_BYTES]


@dataclass
class Collector:
    """A receiver that keeps what it gets, in places of its own where it is told to."""

    has_places: bool = False
    messages: list[NatsMessage] = field(default_factory=list)
    places: list[memoryview] = field(default_factory=list)

    def on_message(self, message: NatsMessage) -> None:
        self.messages.append(message)

    def place(self, _headers: bytes, num_bytes: int) -> memoryview | None:
        if not self.has_places:
            return None
        self.places.append(memoryview(bytearray(num_bytes)))
        return self.places[-1]


def feed(splitter: MessageSplitter, stream: bytes, chance: random.Random, longest: int) -> None:
    """Give bytes as a socket may give them: never more than there is room for."""
    at = 0
    while at < len(stream):
        room = splitter.room()
        assert len(room)
        size = min(len(room), len(stream) - at, chance.randrange(1, longest + 1))
        room[:size] = stream[at : at + size]
        splitter.took(size)
        at += size


def line_of(sid: str, payload: bytes, headers: bytes, reply: str) -> bytes:
    replies = f"{reply} " if reply else ""
    if headers:
        return f"HMSG a.b {sid} {replies}{len(headers)} {len(headers) + len(payload)}\r\n".encode()
    return f"MSG a.b {sid} {replies}{len(payload)}\r\n".encode()


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "33", "control"]),
            st.sampled_from(SIZES),
            st.sampled_from([0, 0, 12, 200, LARGE_BYTES + 5]),
            st.sampled_from(["", "_INBOX.x.1"]),
        ),
        max_size=8,
    ),
    longest=st.sampled_from([1000, 40_000, 10**6]),
    seed=st.integers(0, 2**32),
)
def test_every_message_comes_once_and_whole(data: list[tuple[str, int, int, str]], longest: int, seed: int) -> None:
    chance = random.Random(seed)
    receivers = {b"1": Collector(), b"33": Collector(has_places=True)}
    other = bytearray()
    splitter = MessageSplitter(receivers, other.extend)
    stream, expected, expected_other = bytearray(), {b"1": [], b"33": []}, bytearray()
    for sid, num_bytes, num_header_bytes, reply in data:
        if sid == "control":
            line = chance.choice([b"PING\r\n", b"+OK\r\n", b'INFO {"a":"MSG b 1 5"}\r\n', b"-ERR 'x'\r\n"])
            stream += line
            expected_other += line
            continue
        payload, headers = os.urandom(num_bytes), b"h" * num_header_bytes
        message = line_of(sid, payload, headers, reply) + headers + payload + b"\r\n"
        stream += message
        if sid == "2":
            expected_other += message
        else:
            expected[sid.encode()].append(("a.b", reply, headers, payload))
    feed(splitter, bytes(stream), chance, longest)
    for sid, receiver in receivers.items():
        got = [(got.subject, got.reply, got.headers, bytes(got.payload)) for got in receiver.messages]
        assert got == expected[sid]
    assert other == expected_other


def test_a_large_payload_lies_where_its_receiver_wants_it() -> None:
    receiver = Collector(has_places=True)
    splitter = MessageSplitter({b"1": receiver}, bytearray().extend)
    payload = os.urandom(3 * BUFFER_BYTES)
    feed(splitter, line_of("1", payload, b"", "") + payload + b"\r\n", random.Random(0), 50_000)
    [message] = receiver.messages
    assert message.payload is receiver.places[0]
    assert message.payload == payload


def test_a_receiver_may_leave_while_a_message_for_it_is_coming() -> None:
    receivers = {b"1": Collector()}
    other = bytearray()
    splitter = MessageSplitter(receivers, other.extend)
    payload, chance = bytes(2 * BUFFER_BYTES), random.Random(0)
    message = line_of("1", payload, b"", "") + payload + b"\r\n"
    feed(splitter, message[:BUFFER_BYTES], chance, 1000)
    receiver = receivers.pop(b"1")
    feed(splitter, message[BUFFER_BYTES:] + message + b"PING\r\n", chance, 1000)
    assert len(receiver.messages) == 1
    assert other == message + b"PING\r\n", "nats-py passes over a message for nobody"


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 1\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a 1 -1\r\n",
        b"MSG a 1 2 3 4\r\n",
        b"MSG  \r\n",
        b"HMSG a 1 5\r\n",
        b"HMSG a 1 5 4\r\n",
        b"HMSG a 1 -1 4\r\n",
        b"MSG \xff 1 4\r\n",
        b"MSG a 1 %d\r\n" % (MAX_BYTES + 1),
        b"x" * BUFFER_BYTES,
    ],
)
def test_what_no_server_says(line: bytes) -> None:
    splitter = MessageSplitter({b"1": Collector()}, bytearray().extend)
    with pytest.raises(nats.errors.ProtocolError) as refusal:
        feed(splitter, line, random.Random(0), 10**6)
    assert "the server sent a line" in refusal.value.args[0]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"MSG ", b"HMSG ", b"a ", b"1 ", b"5", b" 12", b"\r\n", b"\n", b"\r", b"\xff", b"-", b"hello"])
    )
)
def test_noise(pieces: list[bytes]) -> None:
    splitter = MessageSplitter({b"1": Collector()}, bytearray().extend)
    with suppress(nats.errors.ProtocolError):
        feed(splitter, b"".join(pieces), random.Random(0), 7)
