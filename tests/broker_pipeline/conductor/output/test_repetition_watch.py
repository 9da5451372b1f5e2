"""Endless repetition."""

import random

import msgspec
import pytest

from broker_pipeline.conductor.output.repetition_watch import RepetitionWatch
from broker_pipeline.messages.sampling import RepetitionDetection


def found_at(token_ids: list[int], rule: RepetitionDetection) -> list[bool]:
    watch = RepetitionWatch(rule)
    return [watch.feed(token_id) for token_id in token_ids]


def plainly(token_ids: list[int], rule: RepetitionDetection) -> bool:
    sizes = range(rule.min_pattern_size or 1, rule.max_pattern_size + 1)
    return any(
        len(token_ids) >= size * rule.min_count
        and token_ids[-size * rule.min_count :] == token_ids[-size:] * rule.min_count
        for size in sizes
    )


def test_repetition_is_what_a_plain_comparison_finds() -> None:
    chance = random.Random(0)
    num_found = 0
    for _ in range(5000):
        smallest = chance.randint(1, 3)
        rule = RepetitionDetection(
            min_pattern_size=smallest, max_pattern_size=smallest + chance.randint(0, 3), min_count=chance.randint(2, 4)
        )
        pattern = chance.choices(range(3), k=chance.randint(1, 5))
        token_ids = chance.choices(range(3), k=chance.randint(0, 9)) + pattern * chance.randint(1, 5)
        token_ids += chance.choices(range(3), k=chance.choice((0, 0, 0, 1)))
        expected = [plainly(token_ids[:end], rule) for end in range(1, len(token_ids) + 1)]
        num_found += any(expected)
        assert found_at(token_ids, rule) == expected, (token_ids, rule)
    assert 500 < num_found < 4500


def test_the_picture_in_the_docstring() -> None:
    rule = RepetitionDetection(max_pattern_size=3, min_count=3)
    assert found_at([7, 1, 2, 1, 2, 1, 2], rule) == [False] * 6 + [True]


def test_a_pattern_has_a_size() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid field `min_pattern_size`: larger"):
        msgspec.convert({"min_pattern_size": 3, "max_pattern_size": 2, "min_count": 2}, RepetitionDetection)
