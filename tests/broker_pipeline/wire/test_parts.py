"""Cutting and joining, without a server."""

from __future__ import annotations

import os

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import PartError, SlowConsumerError
from broker_pipeline.wire.assembler import Assembler, WireMessage
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.parts import (
    METADATA_HEADER,
    PART_HEADER,
    PartHeader,
    Piece,
    SizeRules,
    cut,
    read_part_header,
)

ROOM = 2**30


def frame(num_bytes: int, metadata: bytes = b'{"a":1}', num_pieces: int = 3) -> Frame:
    whole = os.urandom(num_bytes)
    ends = [num_bytes * (index + 1) // num_pieces for index in range(num_pieces)]
    starts = [0, *ends[:-1]]
    pieces = tuple(memoryview(whole)[start:end] for start, end in zip(starts, ends, strict=True) if end > start)
    return Frame(metadata, pieces, num_bytes)


def feed(
    assembler: Assembler, piece: Piece, *, reply: str = "", now: float = 0.0, room: int = ROOM
) -> WireMessage | None:
    header = read_part_header(piece.headers[PART_HEADER])
    metadata = piece.headers.get(METADATA_HEADER, "").encode()
    return assembler.add(header, metadata, bytes(piece.payload), reply, now=now, room_bytes=room)


def feed_all(assembler: Assembler, pieces: list[Piece]) -> None:
    for piece in pieces:
        assert feed(assembler, piece) is None


def parts_of(num_bytes: int = 100, part_bytes: int = 30, message: str = "m") -> list[Piece]:
    return list(cut(frame(num_bytes), SizeRules(1000, part_bytes), message))


@settings(max_examples=200)
@given(
    num_bytes=st.integers(0, 300),
    num_metadata_bytes=st.integers(2, 100),
    header_bytes=st.integers(1, 120),
    part_bytes=st.integers(1, 64),
    num_pieces=st.integers(1, 5),
)
def test_what_is_cut_is_joined_again(
    num_bytes: int, num_metadata_bytes: int, header_bytes: int, part_bytes: int, num_pieces: int
) -> None:
    sent = frame(num_bytes, b'"' + b"m" * (num_metadata_bytes - 2) + b'"', num_pieces)
    pieces = list(cut(sent, SizeRules(header_bytes, part_bytes), "id"))
    assert all(len(piece.payload) <= part_bytes for piece in pieces)
    whole = b"".join(sent.pieces)
    if PART_HEADER not in pieces[0].headers:
        assert len(pieces) == 1
        assert (pieces[0].headers[METADATA_HEADER].encode(), bytes(pieces[0].payload)) == (sent.metadata, whole)
        return
    assembler = Assembler(max_message_bytes=ROOM)
    *early, last = [feed(assembler, piece, reply="r") for piece in pieces]
    assert not any(early)
    assert last is not None
    assert (bytes(last.metadata), bytes(last.payload), last.reply) == (sent.metadata, whole, "r")
    assert (len(assembler), assembler.num_bytes) == (0, 0)


def test_the_payload_of_parts_is_aligned_for_tensors() -> None:
    for num_metadata_bytes in (2, 17, 40):
        sent = frame(200, b"m" * num_metadata_bytes)
        assembler = Assembler(max_message_bytes=ROOM)
        whole = [feed(assembler, piece) for piece in cut(sent, SizeRules(1, 50), "id")][-1]
        assert whole is not None
        assert np.frombuffer(whole.payload, np.uint8).ctypes.data % 16 == 0


def test_metadata_that_is_not_ascii_keeps_out_of_headers() -> None:
    sent = frame(10, '{"a":"ü"}'.encode())
    (piece,) = cut(sent, SizeRules(1000, 1000), "id")
    assert METADATA_HEADER not in piece.headers
    whole = feed(Assembler(max_message_bytes=ROOM), piece)
    assert whole is not None
    assert (whole.metadata, bytes(whole.payload)) == (sent.metadata, b"".join(sent.pieces))


def test_messages_may_interleave() -> None:
    one, two = parts_of(message="one"), parts_of(message="two")
    assembler = Assembler(max_message_bytes=ROOM)
    got = [feed(assembler, piece) for pair in zip(one, two, strict=True) for piece in pair]
    assert sum(message is not None for message in got) == 2
    assert len({bytes(message.payload) for message in got if message}) == 2


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_noticed_when_the_next_one_comes(missing: int) -> None:
    pieces = parts_of()
    del pieces[missing]
    assembler = Assembler(max_message_bytes=ROOM)
    with pytest.raises(PartError):
        feed_all(assembler, pieces)
    assert assembler.num_bytes == 0


def test_one_error_for_each_message_not_for_each_part() -> None:
    pieces = parts_of(300)
    assembler = Assembler(max_message_bytes=ROOM)
    feed(assembler, pieces[0])
    with pytest.raises(PartError):
        feed(assembler, pieces[2])
    assert [feed(assembler, piece) for piece in pieces[3:]] == [None] * len(pieces[3:])


def test_a_missing_last_part_is_noticed_at_the_deadline() -> None:
    assembler = Assembler(max_message_bytes=ROOM, timeout_s=10)
    pieces = parts_of()
    for at, piece in enumerate(pieces[:-1]):
        feed(assembler, piece, reply="who", now=float(at))
    assert assembler.expire(11.9) == []
    (abandoned,) = assembler.expire(12.0)
    assert abandoned.reply == "who"
    assert "part 3 of 4 never came in time" in str(abandoned.error)
    assert (len(assembler), assembler.num_bytes) == (0, 0)
    assert feed(assembler, pieces[-1]) is None, "late, and told already"


def test_a_lost_connection_gives_up_what_it_brought() -> None:
    assembler = Assembler(max_message_bytes=ROOM)
    feed(assembler, parts_of()[0], reply="who")
    (abandoned,) = assembler.abandon_all()
    assert "connection was lost" in str(abandoned.error)
    assert len(assembler) == 0


@pytest.mark.parametrize(
    "changes",
    [{"count": 9}, {"num_bytes": 101}, {"num_metadata_bytes": 3}, {"index": 2}, {"index": 0}],
)
def test_a_part_that_contradicts_the_first_is_foreign(changes: dict[str, int]) -> None:
    pieces = parts_of()
    assembler = Assembler(max_message_bytes=ROOM)
    feed(assembler, pieces[0])
    facts = {"message": "m", "index": 1, "count": 4, "num_bytes": 100, "num_metadata_bytes": 0, **changes}
    with pytest.raises(PartError):
        assembler.add(PartHeader(**facts), b"", bytes(pieces[1].payload), "", now=0, room_bytes=ROOM)  # type: ignore[arg-type]
    assert assembler.num_bytes == 0


@pytest.mark.parametrize(("count", "sizes"), [(2, [60, 60]), (2, [40, 40]), (2, [100, 0]), (3, [50, 50]), (1, [0])])
def test_parts_of_the_wrong_size(count: int, sizes: list[int]) -> None:
    assembler = Assembler(max_message_bytes=ROOM)
    headers = [PartHeader(message="m", index=index, count=count, num_bytes=100) for index in range(len(sizes))]
    texts = [{PART_HEADER: msgspec.json.encode(header).decode()} for header in headers]
    with pytest.raises(PartError, match="does not fit"):
        feed_all(assembler, [Piece(text, bytes(size)) for text, size in zip(texts, sizes, strict=True)])
    assert assembler.num_bytes == 0


def test_bounds() -> None:
    assembler = Assembler(max_message_bytes=100, max_messages=2)
    with pytest.raises(PartError, match="at most 100"):
        feed(assembler, parts_of(101)[0])
    with pytest.raises(SlowConsumerError, match="there are 99"):
        feed(assembler, parts_of(100, message="a")[0], room=99)
    for name in "bc":
        feed(assembler, parts_of(100, message=name)[0])
    with pytest.raises(SlowConsumerError, match="2 messages are being joined"):
        feed(assembler, parts_of(100, message="d")[0])
    assert assembler.num_bytes == 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        '{"message":"a b","index":0,"count":1,"num_bytes":1}',
        '{"message":"a","index":1,"count":1,"num_bytes":1}',
        '{"message":"a","index":-1,"count":1,"num_bytes":1}',
        '{"message":"a","index":0,"count":1,"num_bytes":99999999999}',
        '{"message":"a","index":0,"count":1,"num_bytes":8,"num_metadata_bytes":9}',
        '{"message":"a","index":0,"count":1,"num_bytes":1,"more":1}',
    ],
)
def test_part_headers_that_cannot_be(text: str) -> None:
    with pytest.raises(PartError):
        read_part_header(text)


@pytest.mark.parametrize("max_payload", [1024, 4096, 65_536, 2**20, 8 * 2**20, 64 * 2**20])
def test_every_servers_limit_leaves_room_for_headers(max_payload: int) -> None:
    rules = SizeRules.for_server(max_payload)
    sent = Frame(b"m" * rules.header_bytes, (os.urandom(3 * rules.part_bytes),), 3 * rules.part_bytes)
    for piece in cut(sent, rules, "f" * 30):
        headers = sum(len(key) + len(value) + 4 for key, value in piece.headers.items()) + 12
        assert len(piece.payload) + headers < max_payload
    assert rules.part_bytes <= 2**20
