"""What is wrong with an input is told line by line."""

from __future__ import annotations

import pytest

from gateway.batches.batch_store import OFFSET_EVERY
from gateway.batches.checks import MAX_ERRORS, LineChecker
from gateway.batches.lines import LineCutter
from tests.gateway.batches.conftest import line

ENDPOINT = "/v1/chat/completions"


def checked(
    content: bytes, *, max_requests: int = 10_000, max_line_bytes: int = 10_000, model: str | None = None
) -> LineChecker:
    checker = LineChecker(ENDPOINT, max_requests, max_line_bytes, model)
    cutter = LineCutter(max_line_bytes)
    checker.check(cutter.feed(content))
    checker.check(cutter.close())
    return checker


def told(checker: LineChecker) -> list[tuple[int | None, str]]:
    return [(error.line, error.code) for error in checker.errors()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", [(None, "empty_file")]),
        (b"\n\r\n  \n", [(None, "empty_file")]),
        (b"{", [(1, "invalid_json_line")]),
        (b'\xff\xfe{\x00"\x00', [(1, "invalid_json_line")]),
        (line("a").encode("utf-16"), [(1, "invalid_json_line")]),
        (line("a").replace('"a"', '"\udcff"', 1).encode(errors="surrogateescape"), [(1, "invalid_json_line")]),
        (b"[" * 100_000, [(1, "line_too_long")]),
        (b"[" * 9_000, [(1, "invalid_request")]),
        (b"null", [(1, "invalid_request")]),
        (line("").encode(), [(1, "invalid_request")]),
        (line("a" * 513).encode(), [(1, "invalid_request")]),
        (line("a").encode() + line("b").encode(), [(1, "invalid_json_line")]),
        (line("a").encode() + b"\n" + line("a").encode(), [(2, "duplicate_custom_id")]),
        (line("a", model="").encode(), [(1, "invalid_request")]),
        (b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": 5}', [(1, "invalid_request")]),
    ],
)
def test_wrong_inputs(content: bytes, expected: list[tuple[int | None, str]]) -> None:
    assert told(checked(content)) == expected


def test_what_is_right() -> None:
    content = "\ufeff" + "\r\n".join(line(f"é{index}", extra=[1]) for index in range(2500))
    checker = checked(content.encode(), max_line_bytes=1000, model="demo")
    assert (told(checker), checker.total, checker.model) == ([], 2500, "demo")
    raw = content.encode()
    starts = [raw[offset:].lstrip(b"\xef\xbb\xbf").split(b"\r\n")[0].decode() for offset in checker.offsets]
    assert starts == [line(f"é{index}", extra=[1]) for index in range(0, 2500, OFFSET_EVERY)]


def test_a_model_that_is_not_there_is_told_once() -> None:
    content = "\n".join(line(str(index), model="else") for index in range(5)).encode()
    assert told(checked(content, model="demo")) == [(1, "model_not_found")]
    assert told(checked(content)) == []


def test_too_many_requests_and_too_many_errors_end_the_reading() -> None:
    content = "\n".join(line(str(index)) for index in range(5)).encode()
    many = checked(content, max_requests=4)
    assert (told(many), many.is_hopeless) == ([(None, "too_many_requests")], True)
    wrong = checked(b"x\n" * 3000)
    assert (len(wrong.errors()), wrong.is_hopeless) == (MAX_ERRORS, True)
    assert wrong.total < 3000
    repeated = checked("\n".join(line("same") for _ in range(3000)).encode())
    assert told(repeated)[:2] == [(2, "duplicate_custom_id"), (3, "duplicate_custom_id")]
    assert len(repeated.errors()) == MAX_ERRORS
