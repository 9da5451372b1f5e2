"""How long a stream stood still: pauses after a fault, not tokens that were under way."""

from __future__ import annotations

import pytest

from trials.soak.recovery.report import seconds_of
from trials.soak.recovery.stood_still import stood_still_s


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((9.8, 9.9, 10.05, 11.3, 11.4), 1.25),  # one that was under way still comes
        ((9.9, 11.3), 1.3),
        ((11.0,), 1.0),  # nothing before: whoever waits for the first one waits as well
        ((9.9, 10.1, 10.2, 13.0), 2.8),  # the pause lasts when looking ends
        ((9.9, 10.1, 12.5, 19.0), 6.5),
        ((9.8,), 0.0),  # nothing came any more, and nobody waited
    ],
)
def test_the_longest_pause_after_the_fault(tokens: tuple[float, ...], expected: float) -> None:
    assert stood_still_s(tokens, at=10.0, until=12.6) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [((9.9, 14.7, 14.8), 0.7), ((9.9, 12.0, 13.9, 14.05), 0.05), ((9.9, 13.0), 0.0)],
)
def test_of_a_server_what_comes_after_its_return(tokens: tuple[float, ...], expected: float) -> None:
    assert stood_still_s(tokens, at=10.0, until=15.0, back_at=14.0) == pytest.approx(expected)


def test_seconds_of_all_streams_are_summed_up() -> None:
    found = seconds_of([[0.1] * 50, [0.2] * 50, [0.9]])
    assert (found.num_faults, found.num_streams) == (3, 101)
    assert (found.p50, found.p99, found.worst) == (0.2, 0.2, 0.9)
    assert seconds_of([]).worst == 0.0
