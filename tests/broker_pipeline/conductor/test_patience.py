"""How soon silence means something: learnt from how regular the signs were."""

from __future__ import annotations

import pytest

from broker_pipeline.conductor.patience import Patience


def heard(*pauses_s: float) -> Patience:
    """Return the patience with one that was heard after each of these pauses."""
    patience = Patience(heard_at=0.0, least_s=0.75, most_s=2.5)
    now = 0.0
    for pause_s in pauses_s:
        now += pause_s
        patience.hear(now)
    return patience


def test_before_there_is_something_to_learn_from_all_patience_is_had() -> None:
    assert heard().limit_s == 2.5
    assert heard(*[0.2] * 7).limit_s == 2.5


@pytest.mark.parametrize(("pause_s", "limit_s"), [(0.2, 0.75), (0.4, 1.2), (0.8, 2.4), (3.0, 2.5)])
def test_three_times_the_longest_pause_within_bounds(pause_s: float, limit_s: float) -> None:
    assert heard(*[0.2] * 10, pause_s, 0.2).limit_s == pytest.approx(limit_s)


def test_a_long_pause_is_forgotten_after_a_minute() -> None:
    pauses = [*[0.25] * 10, 0.7]
    assert heard(*pauses, *[0.25] * 40).limit_s == pytest.approx(2.1)
    assert heard(*pauses, *[0.25] * 280).limit_s == pytest.approx(0.75)


def test_a_pause_in_which_nobody_could_be_heard_teaches_nothing() -> None:
    patience = heard(*[0.25] * 10)
    patience.excuse(60.0)
    patience.hear(60.9)  # it had to reconnect as well
    assert patience.limit_s == pytest.approx(0.75)
