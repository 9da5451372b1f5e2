"""A conductor that drafts, on a pipeline of three stages: all say what transformers says, also when a stage dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.models.reference import reference_tokens
from tests.kit.models.scheduled_model import FEW
from tests.kit.pictures import picture
from tests.kit.running.clusters import MOE, tiny_cluster
from tests.kit.running.drill import status_when
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

MAX_TOKENS = 120
PICTURE = picture(1, 128, 96)
QUESTIONS = ["one two three four " * 6, "again and again and again " * 5]
SAMPLED = {"temperature": 1.0, "seed": 3, "logit_bias": FEW}
FLAGS = ("--speculate-tokens", "7", "--speculate-sessions", "3")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    directory = tmp_path_factory.mktemp("drafts") / "run"
    settings = tiny_cluster(directory, MOE, "2,4", extra_arguments={"conductor": FLAGS}).settings
    async with LocalCluster(settings) as cluster, client_of(cluster) as opened:
        yield opened


async def submitted(client: PipelineClient) -> list[str]:
    """Submit greedy jobs, and one that says four tokens in turns that chance decides."""
    jobs = [client.submit(PICTURE, prompt=question, max_tokens=MAX_TOKENS) for question in QUESTIONS]
    return await asyncio.gather(*jobs, client.submit(prompt=QUESTIONS[0], max_tokens=MAX_TOKENS, **SAMPLED))


def expected() -> list[list[int]]:
    return [reference_tokens(MOE, (PICTURE,), question, MAX_TOKENS) for question in QUESTIONS]


def num_accepted(status: PipelineStatus) -> int:
    return status.conductor.num_accepted_tokens if status.conductor else 0


async def test_drafts_are_accepted_and_change_no_token(client: PipelineClient) -> None:
    *greedy, _ = await client.run(await submitted(client))
    assert greedy == expected()
    status = await status_when(client.cluster, lambda status: num_accepted(status) > 0)
    assert status.conductor is not None
    print(f"{num_accepted(status)} of {status.conductor.num_draft_tokens} drafts were right")
    assert status.conductor.num_replays == 0
    await client.wait_empty()


async def test_stages_that_are_killed_meanwhile_cost_nobody_a_token(client: PipelineClient) -> None:
    undisturbed = await client.run(await submitted(client))
    for victim in ("stage-0", "stage-2"):
        job_ids = await submitted(client)
        await client.until_answering(job_ids)
        client.cluster.processes[victim].kill()
        assert await client.run(job_ids) == undisturbed
    status = await status_when(client.cluster, lambda status: num_accepted(status) > 20)
    assert status.conductor is not None
    assert status.conductor.num_replays > 0
    await client.wait_empty()
