import pytest

from trials.bench.spread import Spread, shown


def test_a_spread_names_the_middle_and_the_tenths() -> None:
    spread = Spread.of([float(value) for value in range(1, 102)])
    assert (spread.median, spread.p10, spread.p90, spread.num_samples) == (51, 11, 91, 101)
    assert Spread.of([4.0]) == Spread(median=4.0, p10=4.0, p90=4.0, num_samples=1)
    assert spread.scaled(10).p90 == pytest.approx(910)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.0123")],
)
def test_three_digits_are_shown(value: float, text: str) -> None:
    assert shown(value) == text
