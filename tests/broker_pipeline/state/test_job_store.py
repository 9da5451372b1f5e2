import asyncio
import contextlib
import random
import time
from typing import Any

import msgspec
import pytest

from broker_pipeline import redis_keys
from broker_pipeline.errors import Failure, InvalidRequestError, JobNotFoundError, StateError
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.jobs import ChatMessage, JobResult, JobSpec, TextPart, TokenEntry, Usage
from broker_pipeline.messages.sampling import TokenLogprob
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.state.job_store import JobCounts, JobStore, TokenCommit
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.local.servers import EmbeddedRedis
from tests.kit.waiting import eventually


def make_spec(job_id: str | None = None, **fields: Any) -> JobSpec:
    message = ChatMessage(role="user", content=(TextPart(text="Describe."),))
    defaults = {"created_at": time.time(), "messages": (message,), "metadata": {"name": "a \u2028 b"}}
    return JobSpec(job_id=job_id or new_job_id(), **{**defaults, **fields})


def entries(*token_ids: int) -> tuple[TokenEntry, ...]:
    return tuple(
        TokenEntry(token_id=i, text=f"<{i}>", logprob=-0.1 * i, top=(TokenLogprob(token_id=i, logprob=-1 / 3),))
        for i in token_ids
    )


RESULT = JobResult(
    text="a cat", finish_reason="stop", usage=Usage(num_prompt_tokens=5, num_visual_tokens=3, num_output_tokens=2)
)
MODEL, OTHER_MODEL = "a" * 64, "b" * 64
FAILURE = Failure("retries_exhausted", "gave up", retryable=False)


@pytest.fixture
def store(redis: RedisClient, namespace: str) -> JobStore:
    return JobStore(redis, namespace)


async def running_job(store: JobStore, key: str | None = None) -> tuple[JobSpec, int]:
    spec = make_spec()
    await store.create(spec, key)
    return spec, (await store.begin_attempt(spec, MODEL)).number


async def test_a_job_lives_from_queued_to_succeeded(store: JobStore) -> None:
    spec = make_spec()
    record, is_created = await store.create(spec)
    assert is_created
    assert (record.status, record.attempt, record.metadata) == ("queued", 0, spec.metadata)
    assert record.created_at == spec.created_at

    attempt = await store.begin_attempt(spec, MODEL)
    assert (attempt.number, attempt.tokens, attempt.is_cancelled, attempt.is_finished) == (1, [], False, False)
    started = await store.get(spec.job_id)
    assert started.status == "running"
    assert started.started_at is not None
    assert started.started_at >= spec.created_at

    assert await store.commit([TokenCommit(spec.job_id, 1, 0, entries(7, 8))]) == [True]
    assert await store.finish(spec.job_id, 1, "succeeded", RESULT)
    record = await store.get(spec.job_id)
    assert (record.status, record.result, record.error, record.attempt) == ("succeeded", RESULT, None, 1)
    assert record.finished_at is not None
    assert record.finished_at >= started.started_at
    assert await store.tokens(spec.job_id) == list(entries(7, 8))
    assert await store.tokens(spec.job_id, start=1) == list(entries(8))
    assert await store.spec(spec.job_id) == spec
    assert await store.counts() == JobCounts(succeeded=1)


async def test_what_is_stored_comes_back_byte_for_byte(store: JobStore) -> None:
    text = "".join(map(chr, range(0x100))) + "\u2028\ufffe 猫 \U0001f408 \\u0000 \\ %1 @ "
    message = ChatMessage(role="user", content=(TextPart(text=text),))
    spec = make_spec(created_at=1754321098.1234567, messages=(message,), metadata={text: text, "seed": str(2**64 - 1)})
    record, _ = await store.create(spec)
    assert (record.created_at, record.metadata) == (spec.created_at, spec.metadata)
    assert await store.spec(spec.job_id) == spec
    attempt = await store.begin_attempt(spec, MODEL)
    entry = TokenEntry(token_id=2**31 - 1, text=text, logprob=-1 / 3)
    result = msgspec.structs.replace(RESULT, text=text, num_attempts=2**40)
    last = TokenCommit(spec.job_id, attempt.number, 0, (entry,))
    for _ in range(2):
        assert await store.finish(spec.job_id, attempt.number, "succeeded", result, tokens=last)
    assert (await store.get(spec.job_id)).result == result
    assert await store.tokens(spec.job_id) == [entry]


async def test_a_job_whose_tokens_are_not_all_there_does_not_succeed(
    store: JobStore, redis: RedisClient, namespace: str
) -> None:
    """A server that was killed comes back without what it had not written yet; the next attempt computes that again."""
    spec = make_spec()
    await store.create(spec)
    attempt = await store.begin_attempt(spec, MODEL)
    entries = tuple(TokenEntry(token_id=number, text="a") for number in range(3))
    assert await store.commit([TokenCommit(spec.job_id, attempt.number, 0, entries)]) == [True]
    await redis.rpop(redis_keys.job_tokens(namespace, spec.job_id))
    assert not await store.finish(spec.job_id, attempt.number, "succeeded", RESULT, num_tokens=3)
    assert (await store.get(spec.job_id)).status == "running"
    again = await store.begin_attempt(spec, MODEL)
    last = TokenCommit(spec.job_id, again.number, len(again.tokens), entries[2:])
    for _ in range(2):
        assert await store.finish(spec.job_id, again.number, "succeeded", RESULT, tokens=last, num_tokens=3)


async def test_unknown_jobs_are_named(store: JobStore) -> None:
    for call in (store.get("gone"), store.spec("gone"), store.tokens("gone"), store.request_cancel("gone")):
        with pytest.raises(JobNotFoundError, match="gone"):
            await call
    assert await store.cancelled(["gone"]) == []
    assert not await store.finish("gone", 1, "failed", error=FAILURE)
    assert await store.commit([TokenCommit("gone", 1, 0, entries(1))]) == [False]
    assert not await store.has_later_attempt("gone", 1)
    assert await store.counts() == JobCounts()


async def test_create_again_with_the_same_id_changes_nothing(store: JobStore) -> None:
    spec = make_spec()
    first, _ = await store.create(spec, "key")
    again, is_created = await store.create(spec, "key")
    assert is_created
    assert again == first
    assert await store.counts() == JobCounts(queued=1)
    assert len((await store.list()).records) == 1


async def test_idempotency_key_finds_the_earlier_job(store: JobStore) -> None:
    first, _ = await store.create(make_spec(), "key")
    second, is_created = await store.create(make_spec(), "key")
    other, is_other_created = await store.create(make_spec(), "other key")
    assert not is_created
    assert second.job_id == first.job_id
    assert is_other_created
    assert other.job_id != first.job_id
    assert await store.counts() == JobCounts(queued=2)


async def test_two_clients_racing_with_one_key_create_one_job(redis_url: str, namespace: str) -> None:
    async with open_redis(redis_url) as one, open_redis(redis_url) as two:
        stores = [JobStore(client, namespace) for client in (one, two)]
        made = await asyncio.gather(*(stores[i % 2].create(make_spec(), "key") for i in range(40)))
        assert len({record.job_id for record, _ in made}) == 1
        assert sum(is_created for _, is_created in made) == 1
        assert await stores[0].counts() == JobCounts(queued=1)


async def test_discard_takes_back_a_queued_job_and_its_key(store: JobStore, redis: RedisClient, namespace: str) -> None:
    spec = make_spec()
    await store.create(spec, "key")
    await store.discard(spec.job_id)
    await store.discard(spec.job_id)
    assert await store.counts() == JobCounts()
    assert (await store.list()).records == []
    _, is_created = await store.create(make_spec(), "key")
    assert is_created
    left = {key.decode() async for key in redis.scan_iter(f"{namespace}:job:{spec.job_id}*")}
    assert left == set()


async def test_what_has_ended_is_forgotten_for_good(store: JobStore, redis: RedisClient, namespace: str) -> None:
    ended = make_spec()
    await store.create(ended, "key")
    assert await store.jobs_of(["other", "key"]) == [None, ended.job_id]
    assert await store.jobs_of([]) == []
    attempt = await store.begin_attempt(ended, MODEL)
    running, _ = await running_job(store)
    assert await store.finish(ended.job_id, attempt.number, "succeeded", RESULT)
    for _ in range(2):
        await store.forget_ended([ended.job_id, running.job_id, "unknown"])
    with pytest.raises(JobNotFoundError):
        await store.get(ended.job_id)
    assert (await store.begin_attempt(ended, MODEL)).is_finished, "a late message does not bring it back"
    assert await store.jobs_of(["key"]) == [None]
    assert [record.job_id for record in (await store.list()).records] == [running.job_id]
    assert await redis.ttl(redis_keys.job(namespace, ended.job_id)) > 0


async def test_discard_leaves_a_running_job_alone(store: JobStore) -> None:
    spec, _ = await running_job(store)
    await store.discard(spec.job_id)
    assert (await store.get(spec.job_id)).status == "running"


async def test_a_later_attempt_resumes_and_fences_the_earlier_one(store: JobStore) -> None:
    spec, first = await running_job(store)
    await store.commit([TokenCommit(spec.job_id, first, 0, entries(1, 2))])
    assert not await store.has_later_attempt(spec.job_id, first)
    second = await store.begin_attempt(spec, MODEL)
    assert (second.number, second.tokens) == (2, list(entries(1, 2)))
    assert await store.has_later_attempt(spec.job_id, first)
    assert not await store.has_later_attempt(spec.job_id, second.number)
    assert await store.commit([TokenCommit(spec.job_id, first, 2, entries(3))]) == [False]
    assert not await store.finish(spec.job_id, first, "failed", error=FAILURE)
    assert await store.commit([TokenCommit(spec.job_id, 2, 2, entries(3))]) == [True]
    assert await store.finish(spec.job_id, 2, "succeeded", RESULT)
    assert not await store.has_later_attempt(spec.job_id, first), "none runs any more"
    assert (await store.get(spec.job_id)).result == RESULT


async def test_commit_is_grouped_and_judges_each_job_alone(store: JobStore) -> None:
    jobs = [await running_job(store) for _ in range(5)]
    ids = [spec.job_id for spec, _ in jobs]
    await store.commit([TokenCommit(ids[1], 1, 0, entries(9))])
    done = await store.commit(
        [
            TokenCommit(ids[0], 1, 0, entries(1)),
            TokenCommit(ids[1], 1, 0, entries(1)),  # another token stands there
            TokenCommit(ids[2], 2, 0, entries(1)),  # no such attempt
            TokenCommit(ids[3], 1, 1, entries(1)),  # a gap
            TokenCommit(ids[4], 1, 0, entries(1, 2, 3)),
        ]
    )
    assert done == [True, False, False, False, True]
    assert [len(await store.tokens(job_id)) for job_id in ids] == [1, 1, 0, 0, 3]
    assert await store.commit([]) == []


async def test_commit_again_appends_nothing(store: JobStore) -> None:
    spec, _ = await running_job(store)
    first, second = (TokenCommit(spec.job_id, 1, start, entries(start, start + 1)) for start in (0, 2))
    for commit in (first, first, second, second, first):
        assert await store.commit([commit]) == [True]
    assert await store.tokens(spec.job_id) == list(entries(0, 1, 2, 3))
    longer = TokenCommit(spec.job_id, 1, 2, entries(2, 3, 4))
    assert await store.commit([longer]) == [False], "half of it stands already: not what this call would leave"


async def test_two_clients_racing_to_commit_append_once(redis_url: str, namespace: str) -> None:
    async with open_redis(redis_url) as one, open_redis(redis_url) as two:
        stores = [JobStore(client, namespace) for client in (one, two)]
        spec, _ = await running_job(stores[0])
        for start in range(0, 60, 3):
            commit = TokenCommit(spec.job_id, 1, start, entries(start, start + 1, start + 2))
            assert await asyncio.gather(*(stores[i % 2].commit([commit]) for i in range(6))) == [[True]] * 6
        assert [entry.token_id for entry in await stores[0].tokens(spec.job_id)] == list(range(60))


async def test_a_finished_job_takes_no_tokens_and_no_attempt(store: JobStore) -> None:
    spec, _ = await running_job(store)
    await store.commit([TokenCommit(spec.job_id, 1, 0, entries(1))])
    await store.finish(spec.job_id, 1, "succeeded", RESULT)
    assert await store.commit([TokenCommit(spec.job_id, 1, 1, entries(2))]) == [False]
    attempt = await store.begin_attempt(spec, MODEL)
    assert attempt.is_finished
    record = await store.get(spec.job_id)
    assert (record.status, record.attempt) == ("succeeded", 1)


async def test_second_finish_changes_nothing_and_an_equal_one_says_so(store: JobStore) -> None:
    spec, _ = await running_job(store)
    assert await store.finish(spec.job_id, 1, "succeeded", RESULT)
    before = await store.get(spec.job_id)
    assert await store.finish(spec.job_id, 1, "succeeded", RESULT), "the repeat of a call whose answer was lost"
    assert not await store.finish(spec.job_id, 1, "failed", error=FAILURE)
    assert await store.get(spec.job_id) == before
    assert await store.counts() == JobCounts(succeeded=1)


async def test_the_last_tokens_are_committed_with_the_end(store: JobStore) -> None:
    spec, _ = await running_job(store)
    broken = TokenEntry(token_id=2, text="a line\nand another\r\u2028")
    assert await store.commit([TokenCommit(spec.job_id, 1, 0, (*entries(1), broken))]) == [True]
    last = TokenCommit(spec.job_id, 1, 2, entries(3, 4))
    for _ in range(2):
        assert await store.finish(spec.job_id, 1, "succeeded", RESULT, tokens=last), "also as a repeat"
        assert await store.tokens(spec.job_id) == [*entries(1), broken, *entries(3, 4)]


async def test_tokens_that_do_not_belong_end_no_job(store: JobStore) -> None:
    spec, _ = await running_job(store)
    gap = TokenCommit(spec.job_id, 1, 2, entries(3))
    assert not await store.finish(spec.job_id, 1, "succeeded", RESULT, tokens=gap)
    assert (await store.get(spec.job_id)).status == "running"
    assert await store.tokens(spec.job_id) == []


async def test_more_tokens_than_a_script_can_unpack_are_committed(store: JobStore) -> None:
    spec, _ = await running_job(store)
    many = entries(*range(9000))
    assert await store.commit([TokenCommit(spec.job_id, 1, 0, many)]) == [True]
    assert await store.tokens(spec.job_id) == list(many)


async def test_racing_finishes_end_a_job_once(redis_url: str, namespace: str) -> None:
    async with open_redis(redis_url) as one, open_redis(redis_url) as two:
        stores = [JobStore(client, namespace) for client in (one, two)]
        spec, _ = await running_job(stores[0])
        done = await asyncio.gather(
            *(
                stores[i % 2].finish(spec.job_id, 1, "failed", error=Failure("internal", f"reason {i}"))
                for i in range(20)
            )
        )
        assert sum(done) == 1
        error = (await stores[0].get(spec.job_id)).error
        assert error is not None
        assert error.message == f"reason {done.index(True)}"
        assert await stores[0].counts() == JobCounts(failed=1)


async def test_cancelling_a_queued_job_ends_it_at_once(store: JobStore) -> None:
    spec = make_spec()
    await store.create(spec)
    for _ in range(2):
        record = await store.request_cancel(spec.job_id)
        assert record.status == "cancelled"
        assert record.finished_at is not None
    assert await store.cancelled(["gone", spec.job_id]) == [spec.job_id]
    assert (await store.begin_attempt(spec, MODEL)).is_finished
    assert await store.counts() == JobCounts(cancelled=1)


async def test_cancelling_a_running_job_flags_it_for_this_and_later_attempts(store: JobStore) -> None:
    spec, _ = await running_job(store)
    assert await store.cancelled([spec.job_id]) == []
    assert (await store.request_cancel(spec.job_id)).status == "running"
    assert await store.cancelled(["gone", spec.job_id]) == [spec.job_id]
    attempt = await store.begin_attempt(spec, MODEL)
    assert attempt.is_cancelled
    assert await store.finish(spec.job_id, attempt.number, "cancelled")
    assert (await store.get(spec.job_id)).status == "cancelled"


async def test_cancelling_a_finished_job_leaves_its_result(store: JobStore) -> None:
    spec, _ = await running_job(store)
    await store.finish(spec.job_id, 1, "succeeded", RESULT)
    assert (await store.request_cancel(spec.job_id)).result == RESULT


async def test_pages_are_newest_first_without_gap_or_repeat(store: JobStore) -> None:
    now = time.time()
    times = [now, now, now, now, now - 1, now - 2.25, now - 2.25, now - 3]
    specs = [make_spec(created_at=created_at) for created_at in times]
    for spec in specs:
        await store.create(spec)
    expected = [spec.job_id for spec in sorted(specs, key=lambda s: (s.created_at, s.job_id), reverse=True)]
    for limit in (1, 2, 3, 7, 8, 100):
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await store.list(cursor, limit)
            assert len(page.records) <= limit
            seen += [record.job_id for record in page.records]
            cursor = page.next
            if cursor is None:
                break
        assert seen == expected, f"limit {limit}"


async def test_new_jobs_do_not_disturb_a_reader_between_pages(store: JobStore) -> None:
    old = [make_spec(created_at=100.0 + i) for i in range(4)]
    for spec in old:
        await store.create(spec)
    page = await store.list(limit=2)
    await store.create(make_spec(created_at=200.0))
    await store.discard(page.records[-1].job_id)
    rest = await store.list(page.next, 10)
    assert [record.job_id for record in rest.records] == [old[1].job_id, old[0].job_id]


async def test_list_filters_by_status(store: JobStore) -> None:
    done, _ = await running_job(store)
    await store.finish(done.job_id, 1, "succeeded", RESULT)
    running, _ = await running_job(store)
    queued = make_spec()
    await store.create(queued)
    by_status = {
        status: [record.job_id for record in (await store.list(status=status)).records]
        for status in ("queued", "running", "succeeded", "failed")
    }
    assert by_status == {
        "queued": [queued.job_id],
        "running": [running.job_id],
        "succeeded": [done.job_id],
        "failed": [],
    }


@pytest.mark.parametrize(("arguments", "field"), [({"limit": 0}, "limit"), ({"limit": 1001}, "limit")])
async def test_wrong_page_sizes_are_refused(store: JobStore, arguments: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await store.list(**arguments)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize("cursor", ["", "x", "nan_a", "inf_a", "1e999_a", "(1_a"])
async def test_foreign_cursors_are_refused(store: JobStore, cursor: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await store.list(after=cursor)
    assert caught.value.field == "after"


async def test_finished_jobs_are_forgotten_after_their_time(redis: RedisClient, namespace: str) -> None:
    store = JobStore(redis, namespace, result_ttl_s=1)
    for _ in range(20):
        spec, _ = await running_job(store)
        await store.commit([TokenCommit(spec.job_id, 1, 0, entries(1))])
        await store.finish(spec.job_id, 1, "succeeded", RESULT)
    kept, _ = await running_job(store)

    async def is_forgotten() -> bool:
        return not await redis.exists(redis_keys.job(namespace, spec.job_id))

    await eventually(is_forgotten)
    with pytest.raises(JobNotFoundError):
        await store.get(spec.job_id)
    assert [record.job_id for record in (await store.list()).records] == [kept.job_id]
    assert await store.sweep() == 16, "bounded, so that no call stalls the server"
    assert await store.sweep() == 4
    assert await store.sweep() == 0
    keys = {key.decode() async for key in redis.scan_iter(f"{namespace}:*")}
    assert keys == {
        redis_keys.job(namespace, kept.job_id),
        redis_keys.jobs(namespace),
        redis_keys.jobs_with_status(namespace, "running"),
        redis_keys.counts(namespace),
    }
    assert await store.counts() == JobCounts(running=1, succeeded=20)


async def test_running_jobs_do_not_expire(redis: RedisClient, namespace: str) -> None:
    store = JobStore(redis, namespace, result_ttl_s=1)
    spec, _ = await running_job(store)
    assert await redis.ttl(redis_keys.job(namespace, spec.job_id)) == -1


async def test_an_idempotency_key_lives_until_its_job_is_forgotten(redis: RedisClient, namespace: str) -> None:
    store, name = JobStore(redis, namespace), redis_keys.idempotency(namespace, "key")
    spec, _ = await running_job(store, "key")
    assert await redis.ttl(name) == -1
    await store.finish(spec.job_id, 1, "failed", error=FAILURE)
    assert await redis.ttl(name) == pytest.approx(await redis.ttl(redis_keys.job(namespace, spec.job_id)), abs=1)
    await FailedJobs(redis, namespace).retry(msgspec.structs.replace(spec, num_retries=1))
    assert await redis.ttl(name) == -1
    other, is_new = await store.create(make_spec(), "key")
    assert (other.job_id, is_new) == (spec.job_id, False)


async def test_a_wiped_redis_is_filled_again_from_the_spec(own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_redis(own_redis.url) as client:
        store = JobStore(client, namespace)
        spec, _ = await running_job(store)
        await client.flushall()
        attempt = await store.begin_attempt(spec, MODEL)
        assert (attempt.number, attempt.tokens) == (1, [])
        assert await store.finish(spec.job_id, 1, "succeeded", RESULT)
        record = await store.get(spec.job_id)
        assert (record.created_at, record.metadata, record.result) == (spec.created_at, spec.metadata, RESULT)
        assert await store.counts() == JobCounts(succeeded=1)


async def test_everything_survives_a_killed_redis(own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_redis(own_redis.url) as client:
        store = JobStore(client, namespace)
        spec, _ = await running_job(store)
        commit = TokenCommit(spec.job_id, 1, 0, entries(*range(50)))
        await store.commit([commit])
        done, _ = await running_job(store)
        await store.finish(done.job_id, 1, "succeeded", RESULT)
        before = [await store.get(job.job_id) for job in (spec, done)]

        own_redis.kill()
        await own_redis.process.wait()
        with pytest.raises(StateError, match="cannot commit the tokens of 1 jobs"):
            await store.commit([commit])
        await own_redis.restart()

        assert await store.commit([commit]) == [True], "the repeat after the error"
        assert await store.tokens(spec.job_id) == list(commit.entries)
        assert [await store.get(job.job_id) for job in (spec, done)] == before
        assert await store.counts() == JobCounts(running=1, succeeded=1)
        assert (await store.begin_attempt(spec, MODEL)).number == 2


async def test_a_foreign_value_is_a_state_error(store: JobStore, redis: RedisClient, namespace: str) -> None:
    spec, _ = await running_job(store)
    await redis.hset(redis_keys.job(namespace, spec.job_id), "status", "dancing")
    with pytest.raises(StateError, match=spec.job_id):
        await store.get(spec.job_id)
    await redis.hset(redis_keys.job(namespace, spec.job_id), "status", "running")
    await redis.rpush(redis_keys.job_tokens(namespace, spec.job_id), b"{")
    with pytest.raises(StateError, match="tokens"):
        await store.tokens(spec.job_id)


async def test_committing_a_microbatch_takes_one_command(store: JobStore, redis: RedisClient) -> None:
    jobs = [await running_job(store) for _ in range(32)]
    await store.commit([TokenCommit(jobs[0][0].job_id, 1, 0, ())])
    before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    commits = [TokenCommit(spec.job_id, 1, 0, entries(1)) for spec, _ in jobs]
    assert all(await store.commit(commits))
    after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert after - before == 1


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_each_job_stands_in_one_place_and_is_counted_there(
    store: JobStore, redis: RedisClient, namespace: str, seed: int
) -> None:
    """Random calls, repeated and out of order, from clients that know nothing of each other."""
    chance = random.Random(seed)
    specs = [make_spec() for _ in range(6)]

    async def act() -> None:
        spec = chance.choice(specs)
        attempt = chance.randrange(1, 4)
        start = chance.randrange(3)
        await chance.choice(
            [
                lambda: store.create(spec, chance.choice([None, "key"])),
                lambda: store.begin_attempt(spec, MODEL),
                lambda: store.commit([TokenCommit(spec.job_id, attempt, start, entries(start))]),
                lambda: store.finish(spec.job_id, attempt, "succeeded", RESULT),
                lambda: store.finish(spec.job_id, attempt, "failed", error=FAILURE),
                lambda: store.discard(spec.job_id),
            ]
        )()

    for _ in range(60):
        await asyncio.gather(*(act() for _ in range(4)))
    statuses = {}
    for spec in specs:
        with contextlib.suppress(JobNotFoundError):
            statuses[spec.job_id] = (await store.get(spec.job_id)).status
            assert [entry.token_id for entry in await store.tokens(spec.job_id)] in [[], [0], [0, 1], [0, 1, 2]]
    listed = {
        record.job_id: status
        for status in ("queued", "running", "succeeded", "failed", "cancelled")
        for record in (await store.list(status=status)).records
    }
    assert listed == statuses
    assert {record.job_id for record in (await store.list()).records} == statuses.keys()
    counted = msgspec.structs.asdict(await store.counts())
    assert counted == {status: list(statuses.values()).count(status) for status in counted}


# --- one answer comes from one model --------------------------------------------------------------------------------


async def begun_job(store: JobStore, model: str = MODEL) -> JobSpec:
    """Return a job with two tokens of a model."""
    spec = make_spec()
    await store.create(spec)
    attempt = await store.begin_attempt(spec, model)
    assert await store.commit([TokenCommit(spec.job_id, attempt.number, 0, entries(7, 8))]) == [True]
    return spec


async def test_a_job_knows_whose_tokens_it_has(store: JobStore) -> None:
    spec = make_spec()
    await store.create(spec)
    record = await store.get(spec.job_id)
    assert (record.fingerprint, record.first_attempt) == (None, 1)
    await store.begin_attempt(spec, MODEL)
    attempt = await store.begin_attempt(spec, OTHER_MODEL)
    assert attempt.other_model is None, "the first one had said nothing yet"
    record = await store.get(spec.job_id)
    assert (record.fingerprint, record.first_attempt) == (OTHER_MODEL, 1)


async def test_the_same_model_goes_on(store: JobStore) -> None:
    spec = await begun_job(store)
    attempt = await store.begin_attempt(spec, MODEL, restarts=False)
    assert (attempt.tokens, attempt.other_model) == (list(entries(7, 8)), None)


async def test_another_model_begins_again(store: JobStore) -> None:
    spec = await begun_job(store)
    attempt = await store.begin_attempt(spec, OTHER_MODEL)
    assert (attempt.number, attempt.tokens, attempt.other_model) == (2, [], MODEL)
    assert await store.tokens(spec.job_id) == []
    assert await store.commit([TokenCommit(spec.job_id, 1, 2, entries(9))]) == [False], "a late one of the first"
    assert await store.commit([TokenCommit(spec.job_id, 2, 0, entries(5))]) == [True]
    third = await store.begin_attempt(spec, OTHER_MODEL)
    assert (third.tokens, third.other_model) == (list(entries(5)), None)
    record = await store.get(spec.job_id)
    assert (record.fingerprint, record.first_attempt, record.attempt) == (OTHER_MODEL, 2, 3)


async def test_another_model_leaves_the_tokens_where_it_is_not_to_begin_again(store: JobStore) -> None:
    spec = await begun_job(store)
    for number in (2, 3):
        attempt = await store.begin_attempt(spec, OTHER_MODEL, restarts=False)
        assert (attempt.number, attempt.tokens, attempt.other_model) == (number, list(entries(7, 8)), MODEL)
    record = await store.get(spec.job_id)
    assert (record.fingerprint, record.first_attempt) == (MODEL, 1)


async def test_a_cancelled_job_ends_with_the_tokens_that_it_has(store: JobStore) -> None:
    spec = await begun_job(store)
    await store.request_cancel(spec.job_id)
    attempt = await store.begin_attempt(spec, OTHER_MODEL)
    assert (attempt.is_cancelled, attempt.tokens) == (True, list(entries(7, 8)))
    assert (await store.get(spec.job_id)).fingerprint == MODEL


async def test_tokens_that_nobody_knows_the_model_of_are_anothers(
    store: JobStore, redis: RedisClient, namespace: str
) -> None:
    spec = await begun_job(store)
    await redis.hdel(redis_keys.job(namespace, spec.job_id), "fingerprint")
    assert await store.count_other_models(MODEL) == 1
    attempt = await store.begin_attempt(spec, MODEL)
    assert (attempt.tokens, attempt.other_model) == ([], "")


async def test_jobs_that_another_model_has_begun_are_counted(store: JobStore) -> None:
    first, second = await begun_job(store), await begun_job(store)
    await begun_job(store, OTHER_MODEL)
    await running_job(store)
    await store.create(make_spec())
    assert [await store.count_other_models(model) for model in (MODEL, OTHER_MODEL)] == [1, 2]
    assert await store.finish(first.job_id, 1, "succeeded", RESULT)
    await store.begin_attempt(second, OTHER_MODEL)
    assert await store.count_other_models(OTHER_MODEL) == 0


async def test_a_job_and_its_tokens_are_of_one_moment(store: JobStore) -> None:
    """Whoever reads while models take turns sees no token of one beside the name of the other."""
    spec, stop = await begun_job(store), asyncio.Event()

    async def take_turns() -> None:
        for number in range(2, 60):
            model = (MODEL, OTHER_MODEL)[number % 2 == 0]
            await store.begin_attempt(spec, model)
            assert await store.commit([TokenCommit(spec.job_id, number, 0, entries(number))]) == [True]
        stop.set()

    turns = asyncio.create_task(take_turns())
    while not stop.is_set():
        record, tokens = await store.get_with_tokens(spec.job_id, 0)
        assert [entry.token_id for entry in tokens] in ([], [record.first_attempt], [7, 8])
    await turns
