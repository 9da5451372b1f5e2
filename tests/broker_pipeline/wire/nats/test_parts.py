"""Cutting and joining, without a server."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import MalformedEnvelopeError, PartError, SlowConsumerError
from broker_pipeline.wire.codec import MAX_METADATA_BYTES, Frame
from broker_pipeline.wire.nats.assembler import Assembler
from broker_pipeline.wire.nats.message import header_block, read_headers
from broker_pipeline.wire.nats.parts import (
    PART_HEADER,
    Part,
    PartHeader,
    cut,
    open_whole,
    part_bytes,
    read_part_header,
    whole_bytes,
    whole_pieces,
)
from broker_pipeline.wire.room import OVERHEAD_BYTES, Room

MANY = 2**30


def assembler_of(max_bytes: int = MANY, max_message_bytes: int = MANY, **options: Any) -> Assembler:
    return Assembler(Room(max_bytes, max_message_bytes), **options)


def frame(num_bytes: int, metadata: bytes = b'{"a":1}', num_pieces: int = 3) -> Frame:
    whole = os.urandom(num_bytes)
    ends = [num_bytes * (index + 1) // num_pieces for index in range(num_pieces)]
    starts = [0, *ends[:-1]]
    pieces = tuple(memoryview(whole)[start:end] for start, end in zip(starts, ends, strict=True) if end > start)
    return Frame(metadata, pieces, num_bytes)


def feed(assembler: Assembler, part: Part, *, reply: str = "", now: float = 0.0) -> memoryview | None:
    header = read_part_header(read_headers(part.headers)[PART_HEADER])
    return assembler.add(header, b"".join(part.pieces), reply, now=now)


def feed_all(assembler: Assembler, parts: list[Part]) -> None:
    for part in parts:
        assert feed(assembler, part) is None


def parts_of(num_bytes: int = 100, size: int = 30, message: str = "m") -> list[Part]:
    """Parts of a message of `num_bytes` in all, of which the metadata takes 16."""
    return list(cut(frame(num_bytes - 16), size, message))


# --- one message ----------------------------------------------------------------------------------------------------


@given(num_bytes=st.integers(0, 300), num_metadata_bytes=st.integers(0, 100), num_pieces=st.integers(1, 5))
def test_what_is_laid_together_is_taken_apart_again(num_bytes: int, num_metadata_bytes: int, num_pieces: int) -> None:
    sent = frame(num_bytes, b"m" * num_metadata_bytes, num_pieces)
    whole = b"".join(whole_pieces(sent))
    assert len(whole) == whole_bytes(sent)
    metadata, payload = open_whole(whole)
    assert (bytes(metadata), bytes(payload)) == (sent.metadata, b"".join(sent.pieces))
    assert np.frombuffer(whole, np.uint8).ctypes.data % 16 == 0
    assert (len(whole) - len(payload)) % 16 == 0, "so that tensors are aligned in the receiver's memory"


@pytest.mark.parametrize(
    "whole",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        b"\5\0\0\0{}",
        b"\2\0\0\0{}",
        b"\xff\xff\xff\xff" + bytes(100),
        (MAX_METADATA_BYTES + 1).to_bytes(4, "little") + bytes(MAX_METADATA_BYTES + 100),
    ],
)
def test_a_message_whose_metadata_is_not_all_there(whole: bytes) -> None:
    with pytest.raises(MalformedEnvelopeError) as failure:
        open_whole(whole)
    assert failure.value.field == "metadata"


@given(
    st.dictionaries(
        st.sampled_from(["A", "Bp-Part", "x-y"]), st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Z"]))
    )
)
def test_headers_that_are_written_are_read(headers: dict[str, str]) -> None:
    assert read_headers(header_block(headers)) == headers


def test_the_status_of_the_server_is_a_header() -> None:
    assert read_headers(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    block = b"NATS/1.0 404 No Messages\r\nA:b\r\nno colon\r\n C :\td \r\nE: \xff\r\n\r\n"
    assert read_headers(block) == {"Status": "404", "A": "b", "C": "d", "E": "\ufffd"}
    assert read_headers(b"") == {}


# --- several --------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    num_bytes=st.integers(0, 300),
    num_metadata_bytes=st.integers(2, 100),
    size=st.integers(1, 64),
    num_pieces=st.integers(1, 5),
    are_placed=st.booleans(),
)
def test_what_is_cut_is_joined_again(
    num_bytes: int, num_metadata_bytes: int, size: int, num_pieces: int, are_placed: bool
) -> None:
    sent = frame(num_bytes, b'"' + b"m" * (num_metadata_bytes - 2) + b'"', num_pieces)
    parts = list(cut(sent, size, "id"))
    assembler = assembler_of()
    got: list[memoryview | None] = []
    for index, part in enumerate(parts):
        payload: bytes | memoryview = b"".join(part.pieces)
        assert len(payload) <= size
        header = read_part_header(read_headers(part.headers)[PART_HEADER])
        if are_placed and index:
            place = assembler.place(header, len(payload))
            assert place is not None
            place[:] = payload
            payload = place
        got.append(assembler.add(header, payload, "r", now=0))
    *early, last = got
    assert not any(early)
    assert last is not None
    metadata, payload = open_whole(last)
    assert (bytes(metadata), bytes(payload)) == (sent.metadata, b"".join(sent.pieces))
    assert len(assembler) == 0


def test_the_payload_of_parts_is_aligned_for_tensors() -> None:
    for num_metadata_bytes in (2, 17, 40):
        sent = frame(200, b"m" * num_metadata_bytes)
        assembler = assembler_of()
        message = [feed(assembler, part) for part in cut(sent, 50, "id")][-1]
        assert message is not None
        assert np.frombuffer(open_whole(message)[1], np.uint8).ctypes.data % 16 == 0


def header_of(part: Part) -> PartHeader:
    return read_part_header(read_headers(part.headers)[PART_HEADER])


def test_only_a_part_that_is_expected_gets_a_place() -> None:
    parts = parts_of()
    assembler = assembler_of()
    assert assembler.place(header_of(parts[0]), 30) is None, "the message has not begun"
    feed(assembler, parts[0])
    assert assembler.place(header_of(parts[2]), 30) is None
    assert assembler.place(header_of(parts[1]), 71) is None, "there is no room for it"
    place = assembler.place(header_of(parts[1]), 30)
    assert place is not None
    assert assembler.place(header_of(parts[1]), 30) is None, "somebody else's bytes are being read there"


def test_a_part_that_comes_while_the_same_is_being_read_gives_the_message_up() -> None:
    """Two connections cannot write into one message, whatever its sender does."""
    parts = parts_of(60)
    assembler = assembler_of()
    feed(assembler, parts[0])
    place = assembler.place(header_of(parts[1]), 30)
    assert place is not None
    with pytest.raises(PartError, match="was being read"):
        feed(assembler, parts[1])
    place[:] = bytes(30)  # no message has this memory
    assert assembler.add(header_of(parts[1]), place, "", now=0) is None
    assert assembler.room.used_bytes == 0


def test_messages_may_interleave() -> None:
    one, two = parts_of(message="one"), parts_of(message="two")
    assembler = assembler_of()
    got = [feed(assembler, piece) for pair in zip(one, two, strict=True) for piece in pair]
    assert sum(message is not None for message in got) == 2
    assert len({bytes(message) for message in got if message}) == 2


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_noticed_when_the_next_one_comes(missing: int) -> None:
    pieces = parts_of()
    del pieces[missing]
    assembler = assembler_of()
    with pytest.raises(PartError):
        feed_all(assembler, pieces)
    assert assembler.room.used_bytes == 0


def test_one_error_for_each_message_not_for_each_part() -> None:
    pieces = parts_of(300)
    assembler = assembler_of()
    feed(assembler, pieces[0])
    with pytest.raises(PartError):
        feed(assembler, pieces[2])
    assert [feed(assembler, piece) for piece in pieces[3:]] == [None] * len(pieces[3:])


def test_a_missing_last_part_is_noticed_at_the_deadline() -> None:
    assembler = assembler_of(timeout_s=10)
    pieces = parts_of()
    for at, piece in enumerate(pieces[:-1]):
        feed(assembler, piece, reply="who", now=float(at))
    assert assembler.expire(11.9) == []
    (abandoned,) = assembler.expire(12.0)
    assert abandoned[1] == "who"
    assert "part 3 of 4 never came in time" in str(abandoned[0])
    assert len(assembler) == 0
    assert assembler.room.used_bytes == 0
    assert feed(assembler, pieces[-1]) is None, "late, and told already"


def test_a_lost_connection_gives_up_what_it_brought() -> None:
    assembler = assembler_of()
    feed(assembler, parts_of()[0], reply="who")
    (abandoned,) = assembler.abandon_all()
    assert "connection was lost" in str(abandoned[0])
    assert len(assembler) == 0


@pytest.mark.parametrize(
    "changes",
    [{"count": 9}, {"num_bytes": 101}, {"index": 2}, {"index": 0}],
)
def test_a_part_that_contradicts_the_first_is_foreign(changes: dict[str, int]) -> None:
    pieces = parts_of()
    assembler = assembler_of()
    feed(assembler, pieces[0])
    facts = {"message": "m", "index": 1, "count": 4, "num_bytes": 100, **changes}
    with pytest.raises(PartError):
        assembler.add(PartHeader(**facts), b"".join(pieces[1].pieces), "", now=0)  # type: ignore[arg-type]
    assert assembler.room.used_bytes == 0


@pytest.mark.parametrize(("count", "sizes"), [(2, [60, 60]), (2, [40, 40]), (2, [100, 0]), (3, [50, 50]), (1, [0])])
def test_parts_of_the_wrong_size(count: int, sizes: list[int]) -> None:
    assembler = assembler_of()
    headers = [PartHeader(message="m", index=index, count=count, num_bytes=100) for index in range(len(sizes))]
    texts = [header_block({PART_HEADER: msgspec.json.encode(header).decode()}) for header in headers]
    with pytest.raises(PartError, match="does not fit"):
        feed_all(assembler, [Part(text, (bytes(size),)) for text, size in zip(texts, sizes, strict=True)])
    assert assembler.room.used_bytes == 0


def test_bounds() -> None:
    room_for_two = 2 * (100 + OVERHEAD_BYTES)
    assembler = assembler_of(room_for_two, 100, max_messages=3)
    with pytest.raises(MalformedEnvelopeError, match="at most 100"):
        feed(assembler, parts_of(101)[0])
    for name in "bc":
        feed(assembler, parts_of(100, message=name)[0])
    with pytest.raises(SlowConsumerError, match=rf"{room_for_two} of {room_for_two} are taken"):
        feed(assembler, parts_of(100, message="d")[0])
    assembler.max_messages = 2
    with pytest.raises(SlowConsumerError, match="2 are being joined"):
        feed(assembler, parts_of(100, message="e")[0])
    assert assembler.room.used_bytes == room_for_two


def test_room_is_the_readers_once_a_message_is_whole() -> None:
    assembler = assembler_of()
    message = [feed(assembler, part) for part in parts_of()][-1]
    assert message is not None
    assert assembler.room.used_bytes == len(message) + OVERHEAD_BYTES
    assembler.room.free(len(message))
    assert assembler.room.used_bytes == 0


def test_room_that_is_smaller_than_a_message_says_so_before_it_is_full() -> None:
    room = Room(OVERHEAD_BYTES + 10, 1000)
    with pytest.raises(MalformedEnvelopeError, match="at most 10 are taken"):
        room.take(11)
    room.take(10)
    with pytest.raises(SlowConsumerError):
        room.take(0)


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
        '{"message":"a","index":0,"count":1,"num_bytes":8,"num_metadata_bytes":2}',
        '{"message":"a","index":0,"count":1,"num_bytes":1,"more":1}',
    ],
)
def test_part_headers_that_cannot_be(text: str) -> None:
    with pytest.raises(PartError):
        read_part_header(text)


@pytest.mark.parametrize("max_payload", [1024, 4096, 65_536, 2**20, 8 * 2**20, 64 * 2**20])
def test_every_servers_limit_leaves_room_for_headers(max_payload: int) -> None:
    size = part_bytes(max_payload)
    for part in cut(frame(3 * size), size, "f" * 30):
        assert sum(map(len, part.pieces)) + len(part.headers) < max_payload
    assert size <= 2**20
