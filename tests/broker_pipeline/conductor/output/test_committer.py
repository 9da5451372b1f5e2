"""When tokens reach Redis, and who is told, on a real Redis and a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from broker_pipeline import subjects
from broker_pipeline.conductor.output.committer import GATHER_S, GATHER_TOKENS, Committer
from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.messages.jobs import ChatMessage, JobEvent, JobResult, JobSpec, TextPart, TokenEntry, Usage
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from tests.kit.waiting import eventually

MODEL = "a" * 64


def entry(number: int) -> TokenEntry:
    return TokenEntry(token_id=number, text=f"<{number}>")


class Committing:
    """A committer at work, and what it refused."""

    def __init__(self, transport: Transport, redis: RedisClient, namespace: str) -> None:
        self.store = JobStore(redis, namespace)
        self.watchers = Watchers()
        self.refused: list[tuple[str, int]] = []
        events = JobEvents(transport, namespace, self.watchers)
        self.committer = Committer(self.store, events, lambda job_id, attempt: self.refused.append((job_id, attempt)))

    async def running_job(self) -> str:
        message = ChatMessage(role="user", content=(TextPart(text="Describe."),))
        spec = JobSpec(job_id=new_job_id(), created_at=time.time(), messages=(message,))
        await self.store.create(spec)
        assert (await self.store.begin_attempt(spec, MODEL)).number == 1
        return spec.job_id

    def watch(self, job_id: str) -> None:
        self.watchers.take(WatchRequest(job_ids=(job_id,), for_s=30.0))

    async def num_committed(self, job_id: str) -> int:
        return len(await self.store.tokens(job_id))

    async def committed_after_s(self, job_id: str, num_tokens: int) -> float:
        started = time.monotonic()
        async with asyncio.timeout(10.0):
            while await self.num_committed(job_id) < num_tokens:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        return time.monotonic() - started


@pytest_asyncio.fixture
async def committing(transport: Transport, redis: RedisClient, namespace: str) -> AsyncIterator[Committing]:
    it = Committing(transport, redis, namespace)
    running = asyncio.create_task(it.committer.run())
    yield it
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def listening(transport: Transport, namespace: str) -> AsyncIterator[list[JobEvent]]:
    events: list[JobEvent] = []

    async def listen() -> None:
        async for message in messages:
            events.append(message.body)  # noqa: PERF401 - one by one, as they come

    async with transport.subscribe(subjects.job_events(namespace, "*"), JobEvent) as messages:
        task = asyncio.create_task(listen())
        yield events
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_nobody_watches_gathers_and_is_told_to_nobody(
    committing: Committing, transport: Transport, namespace: str
) -> None:
    job_id = await committing.running_job()
    async with listening(transport, namespace) as events:
        for number in range(5):
            committing.committer.add(job_id, 1, number, entry(number))
        assert await committing.committed_after_s(job_id, 5) > GATHER_S - 0.05
    assert events == []
    assert committing.committer.num_tokens == 0
    assert await committing.store.tokens(job_id) == [entry(number) for number in range(5)]


async def test_what_somebody_watches_is_committed_and_then_told(
    committing: Committing, transport: Transport, namespace: str
) -> None:
    job_id, other = await committing.running_job(), await committing.running_job()
    committing.watch(job_id)
    async with listening(transport, namespace) as events:
        committing.committer.add(other, 1, 0, entry(9))
        committing.committer.add(job_id, 1, 0, entry(0))
        await committing.committed_after_s(job_id, 1)
        committing.committer.add(job_id, 1, 1, entry(1))
        await committing.committed_after_s(job_id, 2)
        assert committing.committer.num_tokens <= 1
    assert {event.job_id for event in events} == {job_id}
    assert [event.index for event in events] == [0, 1]


async def test_what_is_watched_late_is_committed_at_once_and_told(
    committing: Committing, transport: Transport, namespace: str
) -> None:
    job_id, other = await committing.running_job(), await committing.running_job()
    async with listening(transport, namespace) as events:
        committing.committer.add(other, 1, 0, entry(9))
        committing.committer.add(job_id, 1, 0, entry(0))
        await asyncio.sleep(0)
        committing.watch(job_id)
        assert await committing.committed_after_s(job_id, 1) < GATHER_S / 2
        assert await committing.num_committed(other) == 0
        await eventually(lambda: bool(events))
    assert [event.job_id for event in events] == [job_id]


async def test_events_say_which_attempt_their_tokens_are_of(
    committing: Committing, transport: Transport, namespace: str
) -> None:
    job_id = await committing.running_job()
    await committing.store.begin_attempt(await committing.store.spec(job_id), MODEL)
    committing.watch(job_id)
    async with listening(transport, namespace) as events:
        committing.committer.add(job_id, 2, 0, entry(0))
        await eventually(lambda: bool(events))
    assert [event.attempt for event in events] == [2]


async def test_a_job_that_is_quick_does_not_wait_for_the_oldest_token(committing: Committing) -> None:
    job_id, other = await committing.running_job(), await committing.running_job()
    committing.committer.add(other, 1, 0, entry(0))
    for number in range(GATHER_TOKENS):
        committing.committer.add(job_id, 1, number, entry(number))
    assert await committing.committed_after_s(job_id, GATHER_TOKENS) < GATHER_S
    assert await committing.num_committed(other) == 1, "what is committed for one is committed for all"


async def test_flushed_waits_for_nobody_elses_tokens(committing: Committing) -> None:
    job_id, other = await committing.running_job(), await committing.running_job()
    committing.committer.add(other, 1, 0, entry(0))
    committing.committer.add(job_id, 1, 0, entry(0))
    async with asyncio.timeout(5.0):
        await committing.committer.flushed(job_id)
    assert await committing.num_committed(job_id) == 1
    assert await committing.committed_after_s(other, 1) >= 0.0


async def test_the_last_tokens_go_with_the_end(committing: Committing) -> None:
    job_id = await committing.running_job()
    committing.committer.add(job_id, 1, 0, entry(0))
    await committing.committer.flushed(job_id)
    for number in (1, 2):
        committing.committer.add(job_id, 1, number, entry(number))
    last = await committing.committer.last(job_id, 1)
    assert last is not None
    assert (last.start, last.entries) == (1, (entry(1), entry(2)))
    assert committing.committer.num_tokens == 0
    usage = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=3)
    result = JobResult(text="<0><1><2>", finish_reason="length", usage=usage)
    assert await committing.store.finish(job_id, 1, "succeeded", result, tokens=last)
    assert await committing.store.tokens(job_id) == [entry(number) for number in range(3)]


async def test_the_last_tokens_of_a_watched_job_are_told_before_its_end(
    committing: Committing, transport: Transport, namespace: str
) -> None:
    job_id = await committing.running_job()
    committing.watch(job_id)
    async with listening(transport, namespace) as events:
        committing.committer.add(job_id, 1, 0, entry(0))
        assert await committing.committer.last(job_id, 1) is None
        assert await committing.num_committed(job_id) == 1
    assert [event.kind for event in events] == ["tokens"]


async def test_tokens_of_an_older_attempt_are_not_the_last_of_a_newer_one(committing: Committing) -> None:
    job_id = await committing.running_job()
    committing.committer.add(job_id, 1, 0, entry(0))
    assert await committing.committer.last(job_id, 2) is None
    assert committing.committer.num_tokens == 0


async def test_an_attempt_that_is_over_is_refused(committing: Committing) -> None:
    job_id = await committing.running_job()
    await committing.store.begin_attempt(await committing.store.spec(job_id), MODEL)
    committing.committer.add(job_id, 1, 0, entry(0))
    await committing.committer.flushed(job_id)
    assert committing.refused == [(job_id, 1)]
    assert await committing.num_committed(job_id) == 0


@pytest.mark.parametrize("num_jobs", [1, 300])
async def test_many_jobs_share_a_commit(committing: Committing, num_jobs: int) -> None:
    job_ids = [await committing.running_job() for _ in range(num_jobs)]
    for number in range(4):
        for job_id in job_ids:
            committing.committer.add(job_id, 1, number, entry(number))
    for job_id in job_ids:
        await committing.committed_after_s(job_id, 4)
    assert committing.refused == []
