import pytest

from broker_pipeline.errors import StaleAttemptError
from stages.stage.closed_attempts import ClosedAttempts


def test_closed_attempts_and_older_ones_are_over() -> None:
    closed = ClosedAttempts()
    closed.add("a", 2)
    closed.add("a", 1)
    for attempt in (1, 2):
        with pytest.raises(StaleAttemptError):
            closed.check("a", attempt)
    closed.check("a", 3)
    closed.check("b", 1)


def test_memory_is_bounded_and_drops_the_oldest() -> None:
    closed = ClosedAttempts(num_remembered=2)
    for session in ("a", "b", "a", "c"):
        closed.add(session, 1)
    closed.check("b", 1)
    for session in ("a", "c"):
        with pytest.raises(StaleAttemptError):
            closed.check(session, 1)
