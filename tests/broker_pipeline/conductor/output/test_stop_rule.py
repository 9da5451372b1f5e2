"""What ends an output."""

import random

import msgspec
import pytest

from broker_pipeline.conductor.output.stop_rule import StopRule, is_repeating
from broker_pipeline.messages.sampling import RepetitionDetection


def plainly(token_ids: list[int], rule: RepetitionDetection) -> bool:
    sizes = range(rule.min_pattern_size, rule.max_pattern_size + 1)
    return any(
        len(token_ids) >= size * rule.min_count
        and token_ids[-size * rule.min_count :] == token_ids[-size:] * rule.min_count
        for size in sizes
    )


def test_repetition_is_what_a_plain_comparison_finds() -> None:
    chance = random.Random(0)
    num_found = 0
    for _ in range(20_000):
        smallest = chance.randint(1, 3)
        rule = RepetitionDetection(
            min_pattern_size=smallest, max_pattern_size=smallest + chance.randint(0, 3), min_count=chance.randint(2, 4)
        )
        pattern = chance.choices(range(3), k=chance.randint(1, 5))
        token_ids = chance.choices(range(3), k=chance.randint(0, 9)) + pattern * chance.randint(1, 5)
        token_ids += chance.choices(range(3), k=chance.choice((0, 0, 0, 1)))
        expected = plainly(token_ids, rule)
        num_found += expected
        assert is_repeating(token_ids, rule) == expected, (token_ids, rule)
    assert 2000 < num_found < 18_000


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([1, 2, 3], None),
        ([1, 2, 9], "stop"),
        ([9], None),
        ([1, 2, 3, 4, 5, 6], "length"),
        ([1, 2, 3, 4, 5, 9], "stop"),
        ([1, 3, 3, 3], "repetition"),
        ([3, 3], None),
        ([1, 2, 1, 2, 1, 2], "repetition"),
    ],
    ids=str,
)
def test_the_first_reason_that_holds(token_ids: list[int], expected: str | None) -> None:
    repetition = RepetitionDetection(max_pattern_size=2, min_count=2)
    rule = StopRule(max_tokens=6, min_tokens=2, end_token_ids=frozenset({9}), repetition=repetition)
    assert rule.reason(token_ids, is_stopped=False) == expected


def test_a_pattern_has_a_size() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid field `min_pattern_size`: larger"):
        msgspec.convert({"min_pattern_size": 3, "max_pattern_size": 2, "min_count": 2}, RepetitionDetection)
