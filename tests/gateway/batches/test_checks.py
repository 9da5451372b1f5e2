"""What is wrong with an input is told line by line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.batches.batch_store import OFFSET_EVERY
from gateway.batches.checks import MAX_ERRORS, LineChecker
from gateway.batches.lines import LineCutter
from gateway.settings import BatchLimits
from tests.gateway.batches.conftest import line

ENDPOINT = "/v1/chat/completions"


def checked(
    content: bytes, *, model: str | None = None, max_requests: int = 10_000, max_line_bytes: int = 10_000, **more: int
) -> LineChecker:
    limits = BatchLimits(max_requests=max_requests, max_line_bytes=max_line_bytes, **more)
    checker = LineChecker(ENDPOINT, limits, model)
    cutter = LineCutter(max_line_bytes)
    checker.check(cutter.feed(content))
    checker.check(cutter.close())
    return checker


def told(checker: LineChecker) -> list[tuple[int | None, str]]:
    return [(error.line, error.code) for error in checker.errors()]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"custom_id": 5}, "custom_id"),
        ({"method": "GET"}, "method"),
        ({"url": None}, "url"),
        ({"body": 5}, "body"),
        ({"body": {"model": 5}}, "body.model"),
        ({"body": {"model": "demo", "stream": "yes"}}, "body.stream"),
    ],
)
def test_the_field_that_is_wrong_is_named_from_the_line_on(change: dict[str, Any], param: str) -> None:
    right = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": {"model": "demo"}}
    (error,) = checked(json.dumps(right | change).encode()).errors()
    assert error.param == param


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


def test_pictures_in_requests_count_apart() -> None:
    def shown(url: str) -> list[dict[str, object]]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]

    inline = [line(f"in{index}", messages=shown("data:image/png;base64,aaaa")) for index in range(3)]
    elsewhere = [line(f"at{index}", messages=shown("file:///a.png")) for index in range(20)]
    content = "\n".join([*elsewhere, *inline]).encode()
    assert told(checked(content, max_inline_requests=3)) == []
    many = checked(content, max_inline_requests=2)
    assert (told(many), many.is_hopeless) == ([(None, "too_many_requests")], True)
    assert "file:" in many.errors()[0].message
