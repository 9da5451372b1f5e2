"""Lines are the same however the bytes arrive, and each says where it begins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.batches.lines import Line, LineCutter

BYTES = st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"bcd", b" ", b"\xff", "é".encode()])).map(b"".join)


def cut(chunks: list[bytes], max_bytes: int = 1000, offset: int = 0) -> list[Line]:
    cutter = LineCutter(max_bytes, offset)
    return [*(line for chunk in chunks for line in cutter.feed(chunk)), *cutter.close()]


@given(BYTES, st.integers(1, 7))
def test_it_does_not_matter_where_chunks_end(content: bytes, size: int) -> None:
    lines = cut([content])
    assert cut([content[start : start + size] for start in range(0, len(content), size)]) == lines
    plain = [(number, text) for number, text in enumerate(content.split(b"\n"), 1) if text.strip()]
    assert [(line.number, line.content) for line in lines] == plain


@given(BYTES)
def test_a_line_is_found_again_where_it_begins(content: bytes) -> None:
    for line in cut([content]):
        assert cut([content[line.offset :]], offset=line.offset)[0].content == line.content


@given(st.lists(st.binary(max_size=9).filter(lambda text: not {b"\n"[0], b"\xef"[0]} & set(text))), st.integers(1, 5))
def test_of_a_line_that_is_too_long_nothing_is_kept(texts: list[bytes], size: int) -> None:
    content = b"\n".join(texts)
    lines = cut([content[start : start + size] for start in range(0, len(content), size)], max_bytes=4)
    expected = [text if len(text) <= 4 else None for text in texts if text.strip() or len(text) > 4]
    assert [line.content for line in lines] == expected


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_it() -> None:
    lines = cut([b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": 2}'])
    assert [(line.number, line.offset, (line.content or b"").strip()) for line in lines] == [
        (1, 0, b'{"a": 1}'),
        (3, 15, b'{"b": 2}'),
    ]
