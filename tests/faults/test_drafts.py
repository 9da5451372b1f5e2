"""A conductor that drafts, on a pipeline of three stages: all say what transformers says, also when a stage dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import MOE, tiny_cluster
from tests.kit.running.drill import status_when
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

MAX_TOKENS = 200
PICTURE = picture(1, 128, 96)
QUESTIONS = ["one two three four " * 6, "again and again and again " * 5]
FLAGS = ("--speculate-tokens", "7", "--speculate-sessions", "2")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    directory = tmp_path_factory.mktemp("drafts") / "run"
    settings = tiny_cluster(directory, MOE, "2,4", extra_arguments={"conductor": FLAGS}).settings
    async with LocalCluster(settings) as cluster, client_of(cluster) as opened:
        yield opened


async def submitted(client: PipelineClient) -> list[str]:
    jobs = (client.submit(PICTURE, prompt=question, max_tokens=MAX_TOKENS) for question in QUESTIONS)
    return await asyncio.gather(*jobs)


def expected() -> list[list[int]]:
    return [reference_tokens(MOE, (PICTURE,), question, MAX_TOKENS) for question in QUESTIONS]


def num_accepted(status: PipelineStatus) -> int:
    return status.conductor.num_accepted_tokens if status.conductor else 0


async def test_drafts_are_accepted_and_change_no_token(client: PipelineClient) -> None:
    assert await client.run(await submitted(client)) == expected()
    status = await status_when(client.cluster, lambda status: num_accepted(status) > MAX_TOKENS // 4)
    assert status.conductor is not None
    print(f"{num_accepted(status)} of {status.conductor.num_draft_tokens} drafts were right")
    assert status.conductor.num_replays == 0
    await client.wait_empty()


@pytest.mark.parametrize("victim", ["stage-0", "stage-2"])
async def test_a_stage_that_is_killed_meanwhile_costs_nobody_a_token(client: PipelineClient, victim: str) -> None:
    job_ids = await submitted(client)
    await client.until_answering(job_ids)
    client.cluster.processes[victim].kill()
    assert await client.run(job_ids) == expected()
    await client.wait_empty()
