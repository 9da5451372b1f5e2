"""Drafts are what came after the longest end that was there before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.scheduling.drafts.prompt_lookup import FEWEST_TOKENS, look_up

LONGEST = 8


@pytest.mark.parametrize(
    ("tokens", "drafts"),
    [
        ([7, 8, 9, 4, 5, 6, 7, 8, 9], [4, 5, 6, 7]),
        ([1, 2, 5, 9, 2, 6, 1, 2], [5, 9, 2, 6]),
        ([1, 2, 5, 3, 1, 2, 6, 4, 1, 2], [6, 4, 1, 2]),
        ([9, 1, 2, 5, 3, 1, 2, 6, 9, 1, 2], [5, 3, 1, 2]),
        ([1, 2, 1, 2, 1, 2], [1, 2, 1, 2]),
        ([3, 3, 3], [3, 3, 3, 3]),
        ([3, 3], []),
        ([4, 1, 5, 1], []),
        ([1, 2, 3, 4], []),
        ([1], []),
    ],
)
def test_what_is_drafted(tokens: list[int], drafts: list[int]) -> None:
    assert list(look_up(np.array(tokens, np.int32), 4)) == drafts


def plainly(tokens: list[int], num_drafts: int) -> list[int]:
    """The rule, place by place."""

    def num_equal(place: int) -> int:
        pairs = zip(reversed(tokens[: place + 1]), reversed(tokens), strict=False)
        return next((n for n, (left, right) in enumerate(pairs) if left != right), place + 1)

    places = [(min(num_equal(place), LONGEST), place) for place in range(len(tokens) - 1)]
    best, place = max(places, default=(0, 0))
    if best < FEWEST_TOKENS:
        return []
    after = tokens[place + 1 :]
    return [after[index % len(after)] for index in range(num_drafts)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 12))
def test_it_is_the_rule(tokens: list[int], num_drafts: int) -> None:
    assert list(look_up(np.array(tokens, np.int32), num_drafts)) == plainly(tokens, num_drafts)
