"""Any one service dies while many jobs are queued: every job ends once, and right.

Programs that die are started again by the launcher, as an operating system's service manager would.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.drill import status_when
from tests.kit.running.pipeline_client import PROMPT, PipelineClient, client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 40
NUM_PICTURES = 5
NUM_PROMPTS = 10
MAX_TOKENS = 48
NUM_DONE_BEFORE = 5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    directory = tmp_path_factory.mktemp("kill") / "run"
    quick = {"conductor": ("--ack-wait-s", "3", "--lease-ttl-s", "3")}
    cluster = tiny_cluster(directory, DENSE, "1,3", extra_arguments=quick)
    async with cluster, client_of(cluster) as opened:
        yield opened


def prompt_of(job: int) -> str:
    return f"{PROMPT} Number {job % NUM_PROMPTS}."


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    jobs = range(NUM_JOBS)
    return [reference_tokens(DENSE, (picture(job % NUM_PICTURES),), prompt_of(job), MAX_TOKENS) for job in jobs]


async def submit_all(client: PipelineClient) -> tuple[dict[str, int], list[str]]:
    """Submit the jobs, again where this process was late; return when a few have finished and most have not.

    Returns the numbers of jobs before that as well.
    """
    for _ in range(5):
        before = await client.counts()
        submissions = (
            client.submit(picture(job % NUM_PICTURES), prompt=prompt_of(job), max_tokens=MAX_TOKENS)
            for job in range(NUM_JOBS)
        )
        job_ids = await asyncio.gather(*submissions)
        await client.wait_any(job_ids, NUM_DONE_BEFORE)
        if await client.num_finished(job_ids) < 0.8 * NUM_JOBS:
            return before, job_ids
        await client.wait(job_ids)
    raise AssertionError("too late to do harm")


async def finish_all(
    client: PipelineClient, job_ids: list[str], expected: list[list[int]], before: dict[str, int], what: str
) -> int:
    """Wait for every job, hold it against what it must say, and return how many ran more than once."""
    started = time.monotonic()
    records = await client.wait(job_ids, timeout_s=120)
    num_again = sum(record.result is not None and record.result.num_attempts > 1 for record in records)
    print(f"{what}: the last result came {time.monotonic() - started:.1f} s later, {num_again} jobs ran again")
    assert [record.status for record in records] == ["succeeded"] * NUM_JOBS
    assert [await client.tokens(job_id) for job_id in job_ids] == expected
    after = await client.counts()
    assert after["succeeded"] - before["succeeded"] == NUM_JOBS, "none is counted twice"
    assert (after["failed"], after["queued"], after["running"]) == (before["failed"], 0, 0)
    await client.wait_empty()
    return num_again


@pytest.mark.parametrize(
    "victim", ["stage-0", "stage-1", "stage-2", "vision-0", "conductor-0", "gateway-0", "nats", "redis"]
)
async def test_every_job_ends_once_and_right(client: PipelineClient, expected: list[list[int]], victim: str) -> None:
    before, job_ids = await submit_all(client)
    program = client.cluster.processes[victim]
    num_restarts = program.num_restarts
    program.kill()
    num_again = await finish_all(client, job_ids, expected, before, f"{victim} killed")
    await eventually(lambda: program.num_restarts > num_restarts, timeout_s=60)
    if victim.startswith(("stage", "conductor")):
        assert num_again > 0, "its sessions were lost and replayed"


async def test_a_stage_that_hangs_and_wakes_is_taken_back(client: PipelineClient, expected: list[list[int]]) -> None:
    before, job_ids = await submit_all(client)
    program = client.cluster.processes["stage-1"]
    program.kill(signal.SIGSTOP)
    try:
        await status_when(
            client.cluster, lambda status: any(stage.state == "suspended" for stage in status.conductor.stages)
        )
    finally:
        program.kill(signal.SIGCONT)
    assert await finish_all(client, job_ids, expected, before, "stage-1 stopped until it was suspended") > 0
