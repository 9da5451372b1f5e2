from __future__ import annotations

import pytest

from broker_pipeline.errors import KVPositionError, SessionUnknownError, StaleAttemptError
from broker_pipeline.messages import SamplingSettings, Segment, SessionOpen
from stages.session_ledger import SessionLedger


def opening(session: str = "a", attempt: int = 1) -> SessionOpen:
    return SessionOpen(
        session=session, attempt=attempt, num_kv_tokens=64, num_prompt_tokens=8, sampling=SamplingSettings()
    )


def segment(start: int, count: int, attempt: int = 1, session: str = "a") -> Segment:
    return Segment(session=session, attempt=attempt, start=start, count=count)


def ledger_with(num_cached: int, attempt: int = 1) -> SessionLedger:
    ledger = SessionLedger()
    ledger.add(opening(attempt=attempt))
    if num_cached:
        ledger.advance(segment(0, num_cached, attempt))
    return ledger


def test_a_segment_that_continues_is_computed() -> None:
    assert ledger_with(0).admit(segment(0, 5))
    assert ledger_with(5).admit(segment(5, 1))


@pytest.mark.parametrize(("start", "count"), [(0, 5), (3, 2), (4, 1)])
def test_a_repeat_is_left_out(start: int, count: int) -> None:
    assert not ledger_with(5).admit(segment(start, count))


@pytest.mark.parametrize(("start", "count"), [(6, 1), (4, 2), (0, 6)])
def test_gaps_and_overlaps_are_position_errors(start: int, count: int) -> None:
    with pytest.raises(KVPositionError, match="5 tokens cached"):
        ledger_with(5).admit(segment(start, count))


def test_unknown_sessions_and_attempts_are_refused() -> None:
    with pytest.raises(SessionUnknownError):
        SessionLedger().admit(segment(0, 1))
    with pytest.raises(SessionUnknownError):
        ledger_with(5, attempt=1).admit(segment(5, 1, attempt=2))
    with pytest.raises(StaleAttemptError):
        ledger_with(5, attempt=2).admit(segment(5, 1, attempt=1))


def test_a_higher_attempt_replaces_and_a_lower_one_is_refused() -> None:
    ledger = ledger_with(5, attempt=2)
    assert ledger.replaces(opening(attempt=3))
    assert not ledger.replaces(opening(attempt=2))
    with pytest.raises(StaleAttemptError):
        ledger.replaces(opening(attempt=1))


def test_a_closed_attempt_cannot_come_back() -> None:
    ledger = ledger_with(5, attempt=2)
    assert ledger.remove("a", 2)
    for attempt in (1, 2):
        with pytest.raises(StaleAttemptError):
            ledger.replaces(opening(attempt=attempt))
    assert not ledger.replaces(opening(attempt=3))
    assert len(ledger) == 0


def test_closing_an_older_attempt_spares_the_newer_one() -> None:
    ledger = ledger_with(5, attempt=2)
    assert not ledger.remove("a", 1)
    assert ledger.is_open("a", 2)


def test_memory_of_closed_sessions_is_bounded() -> None:
    ledger = SessionLedger(num_remembered=2)
    for name in "abc":
        ledger.remove(name, 1)
    assert not ledger.replaces(opening("a"))  # forgotten
    with pytest.raises(StaleAttemptError):
        ledger.replaces(opening("c"))
