"""Where the data of a JPEG's scans end, against a search by the definition, byte by byte."""

from __future__ import annotations

import random
import re

import pytest

from broker_pipeline.pictures import jpeg
from broker_pipeline.pictures.jpeg import strip_jpeg

HEAD = b"\xff\xd8\xff\xda\x00\x02"
"""A start, and a scan without a header."""
_MARKER = re.compile(rb"\xff+([^\xff\x00\xd0-\xd7])", re.DOTALL)
_BYTES = b"\xff\xff\x00\xd9\xd8\xd0\xd7\xda\xc4\x01\x02\x05"
"""What is data behind 0xff, what is a marker, and small lengths."""


def end_of_data(content: bytes) -> int:
    place = len(HEAD)
    while match := _MARKER.search(content, place):
        if match[1] in {b"\xd9", b"\xd8"}:
            return match.start()
        place = match.end() + max(2, int.from_bytes(content[match.end() : match.end() + 2], "big"))
    return len(content)


@pytest.mark.parametrize("num_bytes_at_once", [1, 2, 3, 7, 2**20])
def test_data_end_where_a_picture_does(monkeypatch: pytest.MonkeyPatch, num_bytes_at_once: int) -> None:
    monkeypatch.setattr(jpeg, "_AT_ONCE", num_bytes_at_once)
    drawn = random.Random(num_bytes_at_once)
    for _ in range(3000):
        content = HEAD + bytes(drawn.choices(_BYTES, k=drawn.randrange(24)))
        end = end_of_data(content)
        assert strip_jpeg(content).content == content[:end] + b"\xff\xd9", content.hex()
        assert strip_jpeg(content).has_end == (end < len(content))
