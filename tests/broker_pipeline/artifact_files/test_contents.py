"""Bytes against what they should be: found at the section's end, in pieces of any size."""

from __future__ import annotations

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.artifact_files.contents import ContentCheck, FileContent, Section

PARTS = (b"header", b"", b"first tensor", b"x", b"last tensor")
WHOLE = b"".join(PARTS)
CONTENT = FileContent(
    "file", tuple(Section(f"part {i}", len(part), hashlib.sha256(part).hexdigest()) for i, part in enumerate(PARTS))
)


def told(content: bytes, cuts: list[int], num_good_bytes: int = 0) -> ContentCheck:
    check = ContentCheck(CONTENT, num_good_bytes)
    edges = [0, *sorted(cuts), len(content)]
    for start, stop in pairwise(edges):
        check.update(content[start:stop])
    return check


@given(st.lists(st.integers(0, len(WHOLE))))
def test_right_bytes_are_right_however_they_come(cuts: list[int]) -> None:
    check = told(WHOLE, cuts)
    assert (check.unfinished, check.altered, check.num_good_bytes) == (None, [], len(WHOLE))


@given(st.integers(0, len(WHOLE) - 1), st.lists(st.integers(0, len(WHOLE))))
def test_a_wrong_byte_is_found_in_its_section_and_what_was_before_stays_good(position: int, cuts: list[int]) -> None:
    wrong = bytearray(WHOLE)
    wrong[position] ^= 1
    check = told(bytes(wrong), cuts)
    assert len(check.altered) == 1
    start = sum(len(part) for part in PARTS[: int(check.altered[0].what[-1])])
    assert start <= position < start + check.altered[0].size_bytes
    assert check.num_good_bytes == start


def test_a_check_goes_on_behind_what_was_good() -> None:
    check = told(WHOLE[:20], [])
    assert check.num_good_bytes == 19
    assert check.unfinished == CONTENT.sections[-1]
    after = told(WHOLE[19:], [], num_good_bytes=19)
    assert (after.unfinished, after.altered, after.num_good_bytes) == (None, [], len(WHOLE))


def test_what_is_beyond_the_end_is_no_section() -> None:
    check = told(WHOLE + b"more", [])
    assert check.num_good_bytes == len(WHOLE)
    assert check.unfinished is None
