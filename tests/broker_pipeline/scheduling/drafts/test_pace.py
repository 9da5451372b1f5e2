"""Drafts that are right make more of them; drafts that are not end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.scheduling.drafts.pace import DraftPace


def test_right_drafts_make_longer_ones() -> None:
    pace = DraftPace()
    lengths = []
    for _ in range(6):
        lengths.append(pace.next_length())
        pace.observe(lengths[-1], lengths[-1])
    assert lengths == [4, 8, 16, 32, 64, 64]


def test_wrong_drafts_make_shorter_ones() -> None:
    pace = DraftPace()
    for num_accepted, length in ((2, 3), (1, 2), (0, 1), (0, 1)):
        pace.observe(pace.next_length(), num_accepted)
        assert pace.next_length() == length


def num_drafted_steps(is_right: list[bool]) -> int:
    pace, num_steps = DraftPace(), 0
    for right in is_right:
        if length := pace.next_length():
            num_steps += 1
            pace.observe(length, length if right else 0)
    return num_steps


def test_a_session_whose_drafts_are_all_wrong_has_hardly_any() -> None:
    assert num_drafted_steps([False] * 100) <= 5
    assert num_drafted_steps([False] * 10_000) <= 12


@given(st.lists(st.booleans(), max_size=400))
def test_what_repeats_itself_later_is_found_out(before: list[bool]) -> None:
    """Nobody rests for longer than he has been wrong, so that drafts come back; then all steps have some."""
    right = num_drafted_steps([*before, *[True] * 2000]) - num_drafted_steps(before)
    assert right >= 2000 - max(16, 2 * len(before))
