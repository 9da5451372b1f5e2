import pytest

from broker_pipeline.conductor.rates import Rate


def test_the_rate_is_that_of_the_window() -> None:
    rate = Rate(10.0)
    assert rate.observe(0, 0.0) == 0.0
    assert rate.observe(50, 1.0) == 50.0
    for second in range(2, 30):
        last = rate.observe(50, float(second))
    assert last == 0.0


def test_a_steady_counter_has_a_steady_rate() -> None:
    rate = Rate(10.0)
    values = [rate.observe(7 * second, float(second)) for second in range(100)]
    assert values[1:] == [pytest.approx(7.0)] * 99


def test_a_counter_that_starts_again_does_not_go_backwards() -> None:
    rate = Rate(10.0)
    rate.observe(100, 0.0)
    assert rate.observe(3, 1.0) == 0.0
    assert rate.observe(13, 2.0) == 10.0
