"""Sessions that together need far more KV than there is: preempted again and again, all say what transformers says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.drill import status_when
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

MAX_TOKENS = 120
NUM_JOBS = 6
KV_TOKENS = 450
"""Whole outputs of two jobs: each has 60 to 110 tokens of prompt."""
PROMPTS = [f"Describe this picture in {number} words." for number in range(NUM_JOBS)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    steps = {"conductor": ("--kv-step-tokens", "8")}
    settings = tiny_cluster(tmp_path_factory.mktemp("steps") / "run", DENSE, "2,4", extra_arguments=steps).settings
    async with LocalCluster(replace(settings, kv_tokens=KV_TOKENS)) as cluster, client_of(cluster) as opened:
        yield opened


def expected() -> list[list[int]]:
    return [reference_tokens(DENSE, _pictures(n), PROMPTS[n], MAX_TOKENS) for n in range(NUM_JOBS)]


def _pictures(number: int) -> tuple[bytes, ...]:
    return (picture(number),) if number % 2 else ()


async def submitted(client: PipelineClient) -> list[str]:
    jobs = (client.submit(*_pictures(n), prompt=PROMPTS[n], max_tokens=MAX_TOKENS) for n in range(NUM_JOBS))
    return await asyncio.gather(*jobs)


def num_preemptions(status: PipelineStatus) -> int:
    return status.conductor.num_preemptions if status.conductor else 0


async def test_preempted_sessions_say_what_they_say_alone_and_it_is_no_attempt(client: PipelineClient) -> None:
    job_ids = await submitted(client)
    assert await client.run(job_ids) == expected()
    status = await status_when(client.cluster, lambda status: num_preemptions(status) > 0)
    print(f"{num_preemptions(status)} preemptions")
    assert status.conductor is not None
    assert status.conductor.num_replays == 0
    assert [record.attempt for record in await client.records(job_ids)] == [1] * NUM_JOBS
    await client.wait_empty()


async def test_a_stage_that_is_killed_while_sessions_are_preempted_costs_nobody_a_token(client: PipelineClient) -> None:
    client.cluster.processes["conductor-0"].kill()  # the next one has yet to learn how long outputs are
    await status_when(client.cluster, lambda status: status.conductor is not None and num_preemptions(status) == 0)
    job_ids = await submitted(client)
    await status_when(client.cluster, lambda status: num_preemptions(status) > 0)
    client.cluster.processes["stage-1"].kill()
    assert await client.run(job_ids) == expected()
    await client.wait_empty()
