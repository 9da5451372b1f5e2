"""The Redis of the simulation against a real one: the same calls, the same answers, the same keys in the end."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from broker_pipeline.errors import Failure, PipelineError
from broker_pipeline.messages.jobs import ChatMessage, JobResult, JobSpec, TextPart, TokenEntry, Usage
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.state.job_store import JobStore, TokenCommit
from broker_pipeline.state.lease import Lease
from broker_pipeline.state.media_references import MediaReferences
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.state.unpublished_jobs import UnpublishedJobs
from tests.simulation.fake_redis.data import RedisData
from tests.simulation.fake_redis.server import FakeRedisClient, FakeRedisServer
from tests.simulation.processes import Process

_TIME = re.compile(r"\b1[78]\d{8}(\.\d+)?\b|\b1[78]\d{10}\b")
"""Seconds since 1970, and epochs, which are hundredths of them."""
_MODELS = ("a" * 64, "b" * 64)

Call = Callable[[], Coroutine[Any, Any, object]]


class Stores:
    """Everything that keeps something in a Redis, and a way to call any of it at random."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        self.jobs = JobStore(redis, namespace)
        self.failed = FailedJobs(redis, namespace)
        self.notes = UnpublishedJobs(redis, namespace)
        self.media = MediaReferences(redis, namespace)
        self.registry = WorkerRegistry(redis, namespace, "main", ttl_s=600.0)
        self.leases = [Lease(redis, namespace, "main", f"conductor-{n}", ttl_s=60.0) for n in range(2)]

    def draw(self, chance: random.Random) -> Call:
        """Return a call; the same `chance` gives the same one whatever the Redis."""
        job_id, number, start = f"job-{chance.randrange(3)}", chance.randrange(1, 4), chance.randrange(4)
        spec = _spec(job_id, chance.randrange(3))
        entries = tuple(TokenEntry(token_id=start + n, text=f"{start + n}") for n in range(chance.randrange(1, 3)))
        commit = TokenCommit(job_id, number, start, entries)
        last = chance.choice((None, commit))
        sha, name = f"sha-{chance.randrange(3)}", f"object-{chance.randrange(3)}"
        record = WorkerRecord(worker=f"w{start}", instance=f"i{number}", role="stage", pipeline="main", subject="s")
        lease = self.leases[chance.randrange(2)]
        usage = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=1)
        result = JobResult(text="x", finish_reason="stop", usage=usage)
        failure = Failure("compute", "broken", retryable=True)
        model, restarts = chance.choice(_MODELS), chance.random() < 0.5
        calls: list[Call] = [
            lambda: self.jobs.create(spec, chance_key),
            lambda: self.jobs.begin_attempt(spec, model, restarts=restarts),
            lambda: self.jobs.begin_attempt(spec, _MODELS[0]),
            lambda: self.jobs.commit([commit]),
            lambda: self.jobs.commit([commit, TokenCommit("job-1", 1, 0, entries)]),
            lambda: self.jobs.finish(job_id, number, "succeeded", result, None, last),
            lambda: self.jobs.finish(job_id, number, "failed", None, failure, last, start),
            lambda: self.jobs.request_cancel(job_id),
            lambda: self.jobs.has_later_attempt(job_id, number),
            lambda: self.jobs.cancelled(["job-0", "job-1", "job-2"]),
            lambda: self.jobs.get_with_tokens(job_id, start),
            lambda: self.jobs.count_other_models(model),
            lambda: self.jobs.discard(job_id),
            self.jobs.sweep,
            lambda: self.failed.retry(spec),
            lambda: self.notes.mark(spec),
            lambda: self.notes.left(0.0),
            lambda: self.failed.discard(job_id),
            lambda: self.failed.fail_unreadable(job_id, failure),
            lambda: self.failed.fail_garbled(job_id, spec, failure),
            lambda: self.media.acquire(sha, job_id, upload=(name, 60.0)),
            lambda: self.media.adopt(sha, job_id, name, replaces=None),
            lambda: self.media.release((sha,), job_id),
            lambda: self.media.keep((sha,), job_id, 60.0),
            lambda: self.media.hold((sha,), job_id),
            lambda: self.media.take_deletable(0.0),
            lambda: self.registry.renew(record),
            lambda: self.registry.release(record),
            self.registry.records,
            lease.acquire,
            lease._renew,
            lease.release,
        ]
        chance_key = chance.choice((None, "key"))
        return chance.choice(calls)


def _spec(job_id: str, num_retries: int) -> JobSpec:
    messages = (ChatMessage(role="user", content=(TextPart(text="x"),)),)
    return JobSpec(job_id=job_id, created_at=1.5, messages=messages, num_retries=num_retries)


async def _answer(call: Call) -> str:
    try:
        return _TIME.sub("T", repr(await call()))
    except PipelineError as error:
        return f"{type(error).__name__}: {error.message}"


@pytest.mark.parametrize("seed", range(3))
async def test_it_answers_as_a_real_one(redis_url: str, namespace: str, seed: int) -> None:
    server = FakeRedisServer(asyncio.get_running_loop(), random.Random(seed))
    async with open_redis(redis_url) as real:
        both = Stores(real, namespace), Stores(FakeRedisClient(server, Process("test")), namespace)  # type: ignore[arg-type]
        right, simulated = random.Random(seed), random.Random(seed)
        for step in range(250):
            expected, found = await _answer(both[0].draw(right)), await _answer(both[1].draw(simulated))
            assert _without_wait(found) == _without_wait(expected), f"step {step}"
        assert _dump_of(server.data) == await _dump(real, namespace)


def _without_wait(answer: str) -> str:
    """What is left of the other's lease is a matter of milliseconds."""
    return "waits" if re.fullmatch(r"5\d\.\d+|60\.0", answer) else answer


async def _dump(redis: RedisClient, namespace: str) -> dict[str, str]:
    found = {}
    async for key in redis.scan_iter(f"{namespace}:*"):
        kind = await redis.type(key)
        read: dict[bytes, Callable[[], Any]] = {
            b"string": lambda key=key: redis.get(key),
            b"hash": lambda key=key: redis.hgetall(key),
            b"list": lambda key=key: redis.lrange(key, 0, -1),
            b"set": lambda key=key: redis.smembers(key),
            b"zset": lambda key=key: redis.zrange(key, 0, -1),
        }
        found[key.decode()] = _shown(await read[kind](), await redis.ttl(key) >= 0)
    return found


def _dump_of(data: RedisData) -> dict[str, str]:
    found = {}
    for key, kind in data.kinds().items():
        read: dict[bytes, Callable[[], Any]] = {
            b"string": lambda key=key: data.call("GET", key),
            b"hash": lambda key=key: _pairs(data.call("HGETALL", key)),
            b"list": lambda key=key: data.call("LRANGE", key, 0, -1),
            b"set": lambda key=key: set(data.call("SRANDMEMBER", key, data.call("SCARD", key))),
            b"zset": lambda key=key: data.call("ZRANGE", key, 0, -1),
        }
        found[key.decode()] = _shown(read[kind](), data.call("PTTL", key) >= 0)
    return found


def _pairs(items: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _shown(value: Any, ends: bool) -> str:
    if isinstance(value, dict):
        value = sorted(value.items())
    elif isinstance(value, set | list) and not (isinstance(value, list) and value and value[0].startswith(b"{")):
        value = sorted(value)
    return _TIME.sub("T", f"{value!r}, ends: {ends}")
