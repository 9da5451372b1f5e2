"""NATS and Redis die and return with what they had on disk; Redis is wiped: nothing accepted is lost, nothing hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_pipeline.errors import JobNotFoundError
from broker_pipeline.state.redis_client import open_redis
from tests.kit.running.drill import (
    Drill,
    Follower,
    crowd_questions,
    decoding,
    fault_cluster,
    log_lines,
    shortened,
    status_when,
    undisturbed,
)
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 36
MAX_JOBS = 16
"""Of these are taken from the queue at a time; the others wait there with their pictures."""
QUESTIONS = crowd_questions(NUM_JOBS, 100)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drill(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    flags = ("--max-jobs", str(MAX_JOBS), "--lease-ttl-s", "3", "--ack-wait-s", "4")
    directory = tmp_path_factory.mktemp("servers") / "run"
    cluster = fault_cluster(directory, "3", extra_arguments={"conductor": flags})
    async with cluster, client_of(cluster) as client:
        yield Drill(client, await undisturbed(client, QUESTIONS))


@pytest.mark.parametrize("server", ["redis", "nats"])
async def test_a_server_is_killed_and_returns(drill: Drill, server: str) -> None:
    client = drill.client
    before = await client.counts()
    async with decoding(client, QUESTIONS, 10, at_once=MAX_JOBS // 2) as crowd:
        program = client.cluster.processes[server]
        num_restarts = program.num_restarts
        died_at = time.time()
        program.kill()
        assert await crowd.finish() == drill.expected
        assert program.num_restarts == num_restarts + 1
        running = [each for each in crowd.followers if was_running(each, died_at)]
        pause_s = max(each.longest_gap_s(died_at, each.token_times[-1]) for each in running)
        print(f"\n{server} killed and started again: longest gap in a running stream {pause_s:.2f} s")
    after = await client.counts()
    assert after["succeeded"] - before["succeeded"] == NUM_JOBS * crowd.num_submissions, "each has ended once"
    await client.wait_empty()


def was_running(follower: Follower, moment: float) -> bool:
    return follower.token_times[0] < moment < follower.token_times[-1]


async def test_redis_is_wiped(drill: Drill) -> None:
    """Records, tokens, lease, epoch and registry are gone at once; queue and pictures are in NATS."""
    client, cluster = drill.client, drill.client.cluster
    job_ids = await asyncio.gather(
        *(client.submit(*each.pictures, prompt=each.prompt, **each.sampling) for each in QUESTIONS)
    )
    await client.wait_any(job_ids, 2)
    wiped_at = time.time()
    async with open_redis(cluster.redis_url) as redis:
        await redis.flushall()
    num_forgotten = sum([await status_of(client, job_id) is None for job_id in job_ids])
    assert num_forgotten > 0
    # Those that had ended before stay forgotten; the queue has all others.
    await status_when(
        cluster, lambda status: status.queue.num_waiting == status.queue.num_in_progress == 0, timeout_s=60
    )
    print(f"\nRedis wiped: {num_forgotten} records gone, the last job ended {time.time() - wiped_at:.1f} s later")
    statuses = {job_id: await status_of(client, job_id) for job_id in job_ids}
    ended = {job_id for job_id, status in statuses.items() if status == "succeeded"}
    assert set(statuses.values()) <= {"succeeded", None}
    assert len(ended) >= NUM_JOBS - MAX_JOBS, "most were queued or running"
    for job_id, tokens in zip(job_ids, drill.expected, strict=True):
        if job_id in ended:
            assert await client.tokens(job_id) == tokens
    assert log_lines(cluster.processes["conductor-0"].log_path, wiped_at, "tenure_begins"), "under a lease of its own"
    questions, expected = shortened(QUESTIONS, drill.expected, 20)
    assert await undisturbed(client, questions) == expected, "and everything runs as before"
    await client.wait_empty()


async def status_of(client: PipelineClient, job_id: str) -> str | None:
    try:
        records = await client.records([job_id])
    except JobNotFoundError:
        return None
    return records[0].status if records else None
