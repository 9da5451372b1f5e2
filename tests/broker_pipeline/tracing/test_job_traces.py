"""Ids and places of a job's spans, and endpoints that are none."""

from __future__ import annotations

import pytest

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tracing.activities import ATTEMPT, JOB, PREPARE, SESSION, STORE_MEDIA, Activity
from broker_pipeline.tracing.job_traces import places, span_id, trace_id
from broker_pipeline.tracing.trace_export import open_traces


def test_a_jobs_ids_are_the_same_everywhere_and_no_other_jobs() -> None:
    assert trace_id("job-1") == trace_id("job-1") != trace_id("job-2")
    assert len(trace_id("job-1")) == 32
    assert 0 < span_id("job-1", "attempt 1") < 2**64
    assert len({span_id(job, place) for job in ("job-1", "job-2") for place in ("job", "attempt 1")}) == 4


@pytest.mark.parametrize(
    ("activity", "attempt", "expected"),
    [
        (JOB, 0, ("job", "")),
        (ATTEMPT, 3, ("attempt 3", "job")),
        (PREPARE, 3, ("", "attempt 3")),
        (SESSION, 1, ("", "attempt 1")),
        (STORE_MEDIA, 0, ("", "job")),
    ],
)
def test_attempts_hang_from_the_job_and_their_work_from_them(
    activity: Activity, attempt: int, expected: tuple[str, str]
) -> None:
    assert places(activity, attempt) == expected


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://collector:4317", "/v1/traces"])
def test_what_is_no_url_is_refused_by_the_flags_name(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="--otlp-endpoint") as caught:
        open_traces(endpoint, "gateway", "bp")
    assert caught.value.field == "otlp_endpoint"
