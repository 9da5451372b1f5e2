"""The proofs must fail: for a missing result, a wrong one, a doubled one, and whatever else a pipeline may do wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobRecord, JobResult, Usage
from broker_pipeline.state.job_store import JobCounts
from trials.soak.proof.client import AskedQuestion
from trials.soak.proof.proofs import Evidence, Proof, prove
from trials.soak.proof.questions import ExpectedAnswer
from trials.soak.proof.timeline import JobTimeline, SeenTokens

NUM_JOBS = 4


def answer(number: int) -> ExpectedAnswer:
    return ExpectedAnswer(
        number=number,
        token_ids=(number, 11, 12),
        text=f"text {number}",
        finish_reason="length",
        num_prompt_tokens=20,
        num_visual_tokens=4,
        is_unambiguous=True,
    )


def record(number: int, **changes: Any) -> JobRecord:
    result = JobResult(
        text=f"text {number}",
        finish_reason="length",
        usage=Usage(num_prompt_tokens=20, num_visual_tokens=4, num_output_tokens=3),
    )
    whole = JobRecord(
        job_id=f"job-{number}",
        status="succeeded",
        created_at=1.0,
        started_at=2.0,
        finished_at=3.0,
        attempt=1,
        metadata={"question": str(number)},
        result=result,
    )
    return msgspec.structs.replace(whole, **changes)


def evidence() -> Evidence:
    """Everything as it should be."""
    records = [record(number) for number in range(NUM_JOBS)]
    return Evidence(
        answers={number: answer(number) for number in range(NUM_JOBS)},
        submissions=[AskedQuestion(number, (f"job-{number}",), records[number], 1, 0.5) for number in range(NUM_JOBS)],
        unanswered={},
        records=records,
        tokens={f"job-{number}": [number, 11, 12] for number in range(NUM_JOBS)},
        counts=JobCounts(succeeded=NUM_JOBS),
        timelines={
            f"job-{number}": JobTimeline(
                [SeenTokens(1.0, 0, (number, 11)), SeenTokens(2.0, 2, (12,))], [(2.1, f"text {number}")]
            )
            for number in range(NUM_JOBS)
        },
    )


def with_record(changed: JobRecord, *, number: int = 2) -> Evidence:
    """The same, but Redis and the client hold this record for one job."""
    good = evidence()
    submissions = [
        replace(submission, record=changed) if submission.question == number else submission
        for submission in good.submissions
    ]
    records = [changed if kept.job_id == changed.job_id else kept for kept in good.records]
    counts = JobCounts(**{changed.status: 1, "succeeded": NUM_JOBS - 1 + (changed.status == "succeeded")})
    return replace(good, records=records, submissions=submissions, counts=counts)


def failing(found: list[Proof]) -> dict[str, str]:
    return {proof.statement: " | ".join(proof.examples) for proof in found if not proof.holds}


def only(evidence: Evidence, statement: str) -> str:
    """Return what is said against the one statement that fails."""
    failed = failing(prove(evidence))
    assert [name for name in failed if statement not in name] == [], failed
    assert len(failed) == 1
    return next(iter(failed.values()))


def test_all_is_proven_where_all_is_right() -> None:
    proofs = prove(evidence())
    assert failing(proofs) == {}
    assert all(proof.num_checked for proof in proofs)


def test_a_question_that_was_never_accepted_is_found() -> None:
    good = evidence()
    lost = replace(
        good,
        submissions=good.submissions[:-1],
        records=good.records[:-1],
        counts=JobCounts(succeeded=NUM_JOBS - 1),
    )
    assert "question 3 was never accepted" in only(lost, "accepted")


def test_a_client_that_gave_up_is_found_with_its_reason() -> None:
    good = evidence()
    given_up = replace(good, submissions=good.submissions[:-1], unanswered={3: "gateway_unreachable: nobody"})
    assert "question 3: gateway_unreachable: nobody" in failing(prove(given_up))[prove(good)[0].statement]


def test_a_job_that_redis_has_lost_is_found() -> None:
    good = evidence()
    lost = replace(good, records=good.records[1:], counts=JobCounts(succeeded=NUM_JOBS - 1))
    assert "question 0: Redis does not know job job-0" in only(lost, "exactly one result")


@pytest.mark.parametrize("status", ["queued", "running"])
def test_a_job_without_end_is_found(status: Any) -> None:
    open_job = record(2, status=status, result=None, finished_at=None)
    assert f"job job-2 is still {status}" in only(with_record(open_job), "exactly one result")


def test_a_failed_job_is_found_with_its_cause() -> None:
    failed = record(2, status="failed", result=None, error=Failure("compute", "boom"))
    assert "job job-2 has failed (compute: boom)" in only(with_record(failed), "exactly one result")


def test_a_wrong_text_is_found() -> None:
    right = record(2).result
    assert right is not None
    wrong = record(2, result=msgspec.structs.replace(right, text="text 3"))
    assert "text is 'text 3', right is 'text 2'" in only(with_record(wrong), "right, token for token")


def test_a_wrong_usage_and_finish_reason_are_found() -> None:
    right = record(2).result
    assert right is not None
    usage = msgspec.structs.replace(right.usage, num_output_tokens=4)
    wrong = record(2, result=msgspec.structs.replace(right, usage=usage, finish_reason="stop"))
    said = only(with_record(wrong), "right, token for token")
    assert "num_output_tokens is 4, right is 3" in said
    assert "finish_reason is 'stop', right is 'length'" in said


@pytest.mark.parametrize(
    ("tokens", "place"), [([2, 11, 13], 2), ([2, 11], 2), ([2, 11, 11, 12], 2), ([2, 11, 12, 12], 3), ([], 0)]
)
def test_a_wrong_missing_or_doubled_token_is_found_where_it_is(tokens: list[int], place: int) -> None:
    good = evidence()
    wrong = replace(good, tokens={**good.tokens, "job-2": tokens}, timelines={})
    assert f"tokens differ from number {place} of 3 on" in only(wrong, "right, token for token")


def test_one_key_that_became_two_jobs_is_found() -> None:
    good = evidence()
    doubled = replace(good.submissions[1], job_ids=("job-1", "job-9"))
    twice = replace(
        good,
        submissions=[good.submissions[0], doubled, *good.submissions[2:]],
        records=[*good.records, record(1, job_id="job-9")],
        counts=JobCounts(succeeded=NUM_JOBS + 1),
    )
    said = only(twice, "idempotency key")
    assert "question 1 became 2 jobs" in said
    assert "question 1 is 2 jobs in Redis" in said


def test_a_second_job_that_no_client_knows_of_is_found() -> None:
    good = evidence()
    twice = replace(good, records=[*good.records, record(1, job_id="job-9")], counts=JobCounts(succeeded=NUM_JOBS + 1))
    assert "question 1 is 2 jobs in Redis: ['job-1', 'job-9']" in only(twice, "idempotency key")


def test_a_job_that_nobody_asked_for_is_found() -> None:
    good = evidence()
    strange = replace(
        good,
        records=[*good.records, record(77), record(78, metadata={})],
        counts=JobCounts(succeeded=NUM_JOBS + 2),
    )
    said = only(strange, "idempotency key")
    assert "question 77" in said
    assert "question ?" in said


def test_a_result_that_was_counted_twice_is_found() -> None:
    twice = replace(evidence(), counts=JobCounts(succeeded=NUM_JOBS + 1))
    assert f"{NUM_JOBS + 1} jobs were counted as succeeded, and {NUM_JOBS} are" in only(twice, "exactly one result")


def test_a_job_that_ended_in_two_ways_is_found() -> None:
    good = evidence()
    good.timelines["job-1"].finished.append((5.0, "another text"))
    assert "job job-1 ended 2 times, in different ways" in only(good, "exactly one result")


def test_a_repeated_word_of_the_same_end_is_no_second_result() -> None:
    good = evidence()
    good.timelines["job-1"].finished.append((5.0, "text 1"))
    assert failing(prove(good)) == {}


def test_a_client_that_was_shown_something_else_is_found() -> None:
    good = evidence()
    shown = replace(good.submissions[0], record=record(0, attempt=2))
    assert "question 0: shown" in only(replace(good, submissions=[shown, *good.submissions[1:]]), "shown what Redis")


def test_a_stream_that_was_contradicted_is_found() -> None:
    good = evidence()
    good.timelines["job-3"].tokens.append(SeenTokens(1.5, 1, (99,)))
    assert "job job-3: at token 1 the stream said [99], the result holds [11]" in only(good, "contradicted")


def test_many_counter_examples_are_cut_short() -> None:
    good = evidence()
    wrong = replace(good, tokens={}, timelines={}, answers={number: answer(number) for number in range(40)})
    proof = prove(wrong)[0]
    assert len(proof.examples) == 6
    assert proof.examples[-1] == f"… and {40 - NUM_JOBS - 5} more"
