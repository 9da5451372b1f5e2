"""Several questions about one picture: its KV is copied from one to the other, and all say what transformers says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

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

MAX_TOKENS = 150
PICTURE = picture(1, 512, 384)
QUESTIONS = [f"Describe this picture in {number} words." for number in range(6)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    settings = tiny_cluster(tmp_path_factory.mktemp("prefixes") / "run", DENSE, "1,4").settings
    async with LocalCluster(settings) as cluster, client_of(cluster) as opened:
        yield opened


async def submitted(client: PipelineClient) -> list[str]:
    jobs = (client.submit(PICTURE, prompt=question, max_tokens=MAX_TOKENS) for question in QUESTIONS)
    return await asyncio.gather(*jobs)


def expected() -> list[list[int]]:
    return [reference_tokens(DENSE, (PICTURE,), question, MAX_TOKENS) for question in QUESTIONS]


def num_copied(status: PipelineStatus) -> int:
    return status.conductor.num_copied_tokens if status.conductor else 0


async def test_questions_about_one_picture_are_answered_as_by_themselves(client: PipelineClient) -> None:
    job_ids = await submitted(client)
    assert await client.run(job_ids) == expected()
    status = await status_when(client.cluster, lambda status: num_copied(status) >= 4 * 64)
    assert status.conductor is not None
    print(f"{num_copied(status)} of {status.conductor.num_prompt_tokens} tokens copied")
    assert status.conductor.num_replays == 0
    await client.wait_empty()


async def test_a_stage_that_is_killed_meanwhile_costs_nobody_a_token(client: PipelineClient) -> None:
    job_ids = await submitted(client)
    client.cluster.processes["stage-1"].kill()
    assert await client.run(job_ids) == expected()
    await client.wait_empty()
