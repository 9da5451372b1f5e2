"""Any one service dies while many jobs are queued: every job ends once, and right.

Programs that die are started again by the launcher, as an operating system's service manager would.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.pictures import picture
from tests.pipeline.client import PROMPT, PipelineClient, client_of
from tests.pipeline.clusters import DENSE, tiny_cluster
from tests.pipeline.reference import reference_tokens
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 50
NUM_PICTURES = 5
NUM_PROMPTS = 10
MAX_TOKENS = 12
NUM_DONE_BEFORE = 5


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    directory = tmp_path_factory.mktemp("kill") / "run"
    async with tiny_cluster(directory, DENSE, "1,3") as cluster, client_of(cluster) as opened:
        yield opened


def prompt_of(job: int) -> str:
    return f"{PROMPT} Number {job % NUM_PROMPTS}."


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    jobs = range(NUM_JOBS)
    return [reference_tokens(DENSE, (picture(job % NUM_PICTURES),), prompt_of(job), MAX_TOKENS) for job in jobs]


@pytest.mark.parametrize(
    "victim", ["stage-0", "stage-1", "stage-2", "vision-0", "conductor-0", "gateway", "nats", "redis"]
)
async def test_every_job_ends_once_and_right(client: PipelineClient, expected: list[list[int]], victim: str) -> None:
    before = await client.counts()
    job_ids = [
        await client.submit(picture(job % NUM_PICTURES), prompt=prompt_of(job), max_tokens=MAX_TOKENS)
        for job in range(NUM_JOBS)
    ]
    await client.wait(job_ids[:NUM_DONE_BEFORE])
    program = client.cluster.processes[victim]
    num_restarts = program.num_restarts
    program.kill()
    started = time.monotonic()
    records = await client.wait(job_ids, timeout_s=120)
    print(f"{victim}: {time.monotonic() - started:.1f} s from its death to the last result")
    await eventually(lambda: program.num_restarts > num_restarts, timeout_s=30)
    assert [record.status for record in records] == ["succeeded"] * NUM_JOBS
    assert [await client.tokens(job_id) for job_id in job_ids] == expected
    after = await client.counts()
    assert after["succeeded"] - before["succeeded"] == NUM_JOBS, "none is counted twice"
    assert (after["failed"], after["queued"], after["running"]) == (before["failed"], 0, 0)
