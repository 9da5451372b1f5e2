"""Whether a soak lost, doubled or spoiled anything: a pure look at what was asked, what came back and what is left.

Every proof names what it looked at, and the first few counter-examples where it fails.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord
from broker_pipeline.state.job_store import JobCounts
from trials.soak.proof.client import AskedQuestion
from trials.soak.proof.questions import ExpectedAnswer
from trials.soak.proof.timeline import JobTimeline, contradiction

_MAX_EXAMPLES = 5


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """One statement, whether it holds, and counter-examples."""

    statement: str
    holds: bool
    num_checked: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that was seen of the jobs."""

    answers: Mapping[int, ExpectedAnswer]
    """By number of the question: one for every question that was to be asked."""
    submissions: Sequence[AskedQuestion]
    """What the clients saw: one for every job that was accepted."""
    unanswered: Mapping[int, str]
    """Questions whose client gave up, and why."""
    records: Sequence[JobRecord]
    """All jobs that Redis knows afterwards."""
    tokens: Mapping[str, Sequence[int]]
    """Committed token ids by job id."""
    counts: JobCounts
    timelines: Mapping[str, JobTimeline] = field(default_factory=dict)


def prove(evidence: Evidence) -> list[Proof]:
    """Check every statement about the jobs."""
    return [
        _proof("every question was accepted and its end was seen", len(evidence.answers), _unaccepted(evidence)),
        _proof("an idempotency key has one job, and no job is without key", len(evidence.records), _doubled(evidence)),
        _proof("every accepted job has exactly one result", len(evidence.submissions), _without_one_result(evidence)),
        _proof("every result is right, token for token", len(evidence.submissions), _wrong(evidence)),
        _proof("clients were shown what Redis holds", len(evidence.submissions), _shown_otherwise(evidence)),
        _proof("no stream was ever contradicted", len(evidence.timelines), _contradicted(evidence)),
    ]


def proof_of_none(statement: str, found: Iterable[str], *, num_checked: int) -> Proof:
    """Return the proof that `found`, a list of counter-examples, is empty."""
    return _proof(statement, num_checked, found)


def _proof(statement: str, num_checked: int, counter_examples: Iterable[str]) -> Proof:
    found = list(counter_examples)
    shown = found[:_MAX_EXAMPLES]
    if len(found) > len(shown):
        shown.append(f"… and {len(found) - len(shown)} more")
    return Proof(statement=statement, holds=not found, num_checked=num_checked, examples=tuple(shown))


def _unaccepted(evidence: Evidence) -> Iterable[str]:
    seen = {submission.question for submission in evidence.submissions}
    for number in evidence.answers:
        if number in evidence.unanswered:
            yield f"question {number}: {evidence.unanswered[number]}"
        elif number not in seen:
            yield f"question {number} was never accepted"


def _doubled(evidence: Evidence) -> Iterable[str]:
    for submission in evidence.submissions:
        if len(submission.job_ids) > 1:
            yield f"question {submission.question} became {len(submission.job_ids)} jobs: {submission.job_ids}"
    by_question: defaultdict[str, list[str]] = defaultdict(list)
    for record in evidence.records:
        by_question[record.metadata.get("question", "?")].append(record.job_id)
    for question, job_ids in by_question.items():
        if len(job_ids) > 1 or question == "?" or int(question) not in evidence.answers:
            yield f"question {question} is {len(job_ids)} jobs in Redis: {job_ids}"


def _without_one_result(evidence: Evidence) -> Iterable[str]:
    records = {record.job_id: record for record in evidence.records}
    for submission in evidence.submissions:
        for job_id in submission.job_ids:
            yield from _not_one_result(submission.question, job_id, records.get(job_id))
    yield from _miscounted(evidence)
    for job_id, job in evidence.timelines.items():
        if len({text for _, text in job.finished if text is not None}) > 1:
            yield f"job {job_id} ended {len(job.finished)} times, in different ways"


def _not_one_result(question: int, job_id: str, record: JobRecord | None) -> Iterable[str]:
    if record is None:
        yield f"question {question}: Redis does not know job {job_id}"
    elif record.status not in FINAL_STATUSES:
        yield f"question {question}: job {job_id} is still {record.status}"
    elif record.status != "succeeded" or record.result is None:
        reason = f"{record.error.code}: {record.error.message}" if record.error else "no reason given"
        yield f"question {question}: job {job_id} has {record.status} ({reason})"


def _miscounted(evidence: Evidence) -> Iterable[str]:
    """Compare jobs with the ends that were counted where they were written: more ends are doubled results."""
    ended = Counter(record.status for record in evidence.records)
    for status in ("queued", "running", "succeeded", "failed", "cancelled"):
        counted = getattr(evidence.counts, status)
        if counted != ended[status]:
            yield f"{counted} jobs were counted as {status}, and {ended[status]} are"


def _wrong(evidence: Evidence) -> Iterable[str]:
    records = {record.job_id: record for record in evidence.records}
    for submission in evidence.submissions:
        answer = evidence.answers.get(submission.question)
        record = records.get(submission.job_ids[0])
        if answer is None:
            yield f"question {submission.question} has no known answer"
        elif record is not None and record.result is not None:
            for difference in _differences(answer, record, evidence.tokens.get(record.job_id, ())):
                yield f"question {submission.question}, job {record.job_id}, attempt {record.attempt}: {difference}"


def _differences(answer: ExpectedAnswer, record: JobRecord, token_ids: Sequence[int]) -> Iterable[str]:
    result = record.result
    assert result is not None
    if tuple(token_ids) != answer.token_ids:
        place = _first_difference(token_ids, answer.token_ids)
        said, right = list(token_ids[place : place + 4]), list(answer.token_ids[place : place + 4])
        yield f"tokens differ from number {place} of {len(answer.token_ids)} on: {said}, right is {right}"
    pairs = {
        "text": (result.text, answer.text),
        "finish_reason": (result.finish_reason, answer.finish_reason),
        "num_output_tokens": (result.usage.num_output_tokens, len(answer.token_ids)),
        "num_prompt_tokens": (result.usage.num_prompt_tokens, answer.num_prompt_tokens),
        "num_visual_tokens": (result.usage.num_visual_tokens, answer.num_visual_tokens),
    }
    for name, (said_value, right_value) in pairs.items():
        if said_value != right_value:
            yield f"{name} is {said_value!r}, right is {right_value!r}"


def _first_difference(said: Sequence[int], right: Sequence[int]) -> int:
    places = (place for place, pair in enumerate(zip(said, right, strict=False)) if pair[0] != pair[1])
    return next(places, min(len(said), len(right)))


def _shown_otherwise(evidence: Evidence) -> Iterable[str]:
    records = {record.job_id: record for record in evidence.records}
    for submission in evidence.submissions:
        held = records.get(submission.record.job_id)
        if held is not None and held != submission.record:
            yield f"question {submission.question}: shown {submission.record}, Redis holds {held}"


def _contradicted(evidence: Evidence) -> Iterable[str]:
    for job_id, job in evidence.timelines.items():
        found = contradiction(job, evidence.tokens.get(job_id, ()))
        if found is not None:
            yield f"job {job_id}: {found}"
