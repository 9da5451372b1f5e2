"""How fast, and how long yet."""

import pytest

from broker_pipeline.captioning.rate_meter import RateMeter, clock_text


def test_the_rate_is_that_of_the_last_minute() -> None:
    now = 0.0
    meter = RateMeter(lambda: now)
    assert meter.per_second() is None
    for second in range(1, 301):
        now = float(second)
        meter.count()
        if second > 100:
            meter.count()
    assert meter.per_second() == pytest.approx(2.0, rel=0.05)
    assert meter.remaining_s(100) == pytest.approx(50, rel=0.05)


def test_nothing_is_promised_when_nothing_finishes() -> None:
    now = 0.0
    meter = RateMeter(lambda: now)
    meter.count()
    meter.count()
    now = 1000.0
    assert meter.remaining_s(5) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "--:--"), (0.2, "0:00"), (59.6, "1:00"), (245, "4:05"), (3723, "1:02:03")]
)
def test_seconds_as_people_read_them(seconds: float | None, text: str) -> None:
    assert clock_text(seconds) == text
