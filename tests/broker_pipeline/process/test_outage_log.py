"""An outage is said once, and again once it is another one."""

import pytest
from structlog.testing import capture_logs

from broker_pipeline.errors import PipelineError, StateError, TransportError
from broker_pipeline.process.outage_log import OutageLog


def said(outages: OutageLog, *failures: PipelineError | None) -> list[tuple[str, str]]:
    with capture_logs() as logs:
        for failure in failures:
            with outages.outlasting():
                if failure is not None:
                    raise failure
    return [(each["event"], each["reason"]) for each in logs]


def test_an_outage_is_said_once_for_each_reason_and_each_time_that_it_begins() -> None:
    away, full = StateError("away"), StateError("full")
    told = said(OutageLog("not_swept"), away, away, full, None, None, full, full, away)
    assert told == [("not_swept", reason) for reason in ("away", "full", "full", "away")]


def test_what_is_no_outage_of_this_work_is_raised() -> None:
    with pytest.raises(TransportError):
        said(OutageLog("not_swept", StateError), StateError("away"), TransportError("gone"))
    with pytest.raises(ZeroDivisionError), OutageLog("not_swept").outlasting():
        _ = 1 / 0


def test_facts_are_said_as_well() -> None:
    with capture_logs() as logs, OutageLog("not_swept", what="files").outlasting():
        raise StateError("away")
    assert logs == [{"event": "not_swept", "log_level": "warning", "code": "state", "reason": "away", "what": "files"}]
