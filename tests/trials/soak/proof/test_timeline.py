"""How a fault was felt, from the events of jobs."""

from __future__ import annotations

from broker_pipeline.messages.jobs import JobEvent, JobRecord, JobResult, TokenEntry, Usage
from trials.soak.proof.timeline import Timelines


def tokens(job: str, index: int, *ids: int) -> JobEvent:
    return JobEvent(job_id=job, kind="tokens", index=index, tokens=tuple(TokenEntry(token_id=id_) for id_ in ids))


def finished(job: str, text: str) -> JobEvent:
    usage = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=1)
    result = JobResult(text=text, finish_reason="stop", usage=usage)
    record = JobRecord(job_id=job, status="succeeded", created_at=0.0, result=result)
    return JobEvent(job_id=job, kind="finished", record=record)


def timelines() -> Timelines:
    seen = Timelines()
    for at, event in (
        (1.0, tokens("a", 0, 5)),
        (1.5, tokens("b", 0, 6)),
        (2.5, tokens("a", 1, 5, 5)),
        (4.0, tokens("b", 1, 6)),
        (4.5, finished("b", "done")),
        (6.0, finished("a", "done")),
        (7.0, tokens("c", 0, 7)),
    ):
        seen.take(event, at)
    return seen


def test_first_and_last_job_to_move_are_told_apart() -> None:
    felt = timelines().recovery(2.0)
    assert felt.num_under_way == 2
    assert felt.first_token_s == 0.5
    assert felt.all_moving_s == 2.0


def test_an_end_is_a_sign_of_life_and_ended_jobs_are_not_under_way() -> None:
    felt = timelines().recovery(5.0)
    assert (felt.num_under_way, felt.first_token_s) == (1, 1.0)


def test_with_nobody_under_way_nothing_was_felt() -> None:
    assert timelines().recovery(6.5).first_token_s is None
    assert timelines().recovery(0.5).num_under_way == 0


def test_events_that_say_nothing_leave_no_trace() -> None:
    seen = timelines()
    seen.take(JobEvent(job_id="a", kind="started"), 6.2)
    assert seen.jobs["a"].last_at == 6.0
    assert seen.jobs["b"].finished == [(4.5, "done")]
