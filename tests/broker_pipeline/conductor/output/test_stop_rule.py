"""What ends an output."""

import pytest

from broker_pipeline.conductor.output.stop_rule import StopRule


@pytest.mark.parametrize(
    ("token_ids", "happens", "expected"),
    [
        ([1, 2, 3], {}, None),
        ([1, 2, 9], {}, "stop"),
        ([9], {}, "stop"),
        ([1, 2, 9], {"is_repeating": True}, "stop"),
        ([1, 2, 3, 4, 5, 6], {}, "length"),
        ([1, 2, 3, 4, 5, 9], {}, "stop"),
        ([1, 2, 3, 4, 5, 6], {"is_stopped": True}, "stop"),
        ([1, 2, 3, 4, 5, 6], {"is_repeating": True}, "repetition"),
        ([3, 3, 3], {"is_repeating": True}, "repetition"),
        ([3, 3], {"is_repeating": True}, None),
    ],
    ids=str,
)
def test_the_first_reason_that_holds(token_ids: list[int], happens: dict[str, bool], expected: str | None) -> None:
    rule = StopRule(max_tokens=6, min_tokens=2, end_token_ids=frozenset({9}))
    assert rule.reason(token_ids, **happens) == expected
