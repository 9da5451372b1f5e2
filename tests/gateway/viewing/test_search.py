"""A search through what jobs have said, over real jobs."""

from __future__ import annotations

import pytest

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import Choice, JobRecord, JobResult, Usage
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from gateway.viewing import search
from gateway.viewing.search import Search, says
from tests.broker_pipeline.state.test_job_store import MODEL, make_spec

USAGE = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=1)


def result(text: str, *choices: str) -> JobResult:
    told = tuple(Choice(text=each, finish_reason="stop", num_output_tokens=1) for each in choices)
    return JobResult(text=text, finish_reason="stop", usage=USAGE, choices=told)


async def captioned(store: JobStore, *texts: str) -> list[str]:
    """Return the ids of jobs with these captions, the newest first."""
    job_ids = []
    for number, text in enumerate(texts):
        spec = make_spec(created_at=1000.0 + number // 2)  # two at each moment
        await store.create(spec)
        attempt = await store.begin_attempt(spec, MODEL)
        assert await store.finish(spec.job_id, attempt.number, "succeeded", result(text))
        job_ids.append(spec.job_id)
    return [record.job_id for record in (await store.list(limit=1000)).records]


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("bicycle", True),
        ("RED bicycle", True),
        ("bicycle red", True),
        ("cycle", True),
        ("red car", False),
        ("straße", True),
    ],
)
def test_all_words_have_to_be_there_in_any_order_and_case(text: str, is_found: object) -> None:
    record = JobRecord(job_id="a", status="succeeded", created_at=1.0, result=result("A Red bicycle, STRASSE 5"))
    assert says(record, text.casefold().split()) == is_found


def test_every_output_and_the_reason_of_a_failure_are_looked_at() -> None:
    several = JobRecord(job_id="a", status="succeeded", created_at=1.0, result=result("one", "one", "two"))
    assert says(several, ["two"])
    failed = JobRecord(job_id="a", status="failed", created_at=1.0, error=Failure(code="truncated_image", message="m"))
    assert says(failed, ["truncated_image"])
    assert not says(JobRecord(job_id="a", status="queued", created_at=1.0), ["two"])


async def test_pages_of_a_search_leave_nothing_out_and_nothing_twice(redis: RedisClient, namespace: str) -> None:
    store = JobStore(redis, namespace)
    job_ids = await captioned(store, *(f"{'cat' if number % 3 else 'dog'} {number}" for number in range(130)))
    expected = [job_id for job_id in job_ids if (await store.get(job_id)).result.text.startswith("dog")]  # type: ignore[union-attr]
    found: list[str] = []
    after, num_pages = None, 0
    while num_pages == 0 or after is not None:
        page = await Search("DOG").run(store, after, 7)
        found += [record.job_id for record in page.records]
        after, num_pages = page.next, num_pages + 1
    assert found == expected
    assert num_pages >= 40 / 7
    assert (await Search("dog", status="failed").run(store, None, 7)).records == []


async def test_one_request_looks_through_so_many_and_says_where_to_go_on(
    redis: RedisClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_SEARCHED", 100)
    store = JobStore(redis, namespace)
    for number in range(130):
        await store.create(make_spec(created_at=float(number + 1)))
    page = await Search("nothing").run(store, None, 10)
    assert (page.records, page.num_searched) == ([], 100)
    rest = await Search("nothing").run(store, page.next, 10)
    assert (rest.num_searched, rest.next) == (30, None)
