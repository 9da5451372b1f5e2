"""Questions about one picture, asked when others have ended: they begin with what is kept, and say what they would."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.status import KeptCounts
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.drill import status_when
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

MAX_TOKENS = 40
PICTURE = picture(1, 384, 256)
QUESTIONS = [f"Describe this picture in {number} words." for number in range(4)]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["0.5", "0"], ids=["kept", "not kept"])
async def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[PipelineClient]:
    extra = {"conductor": ("--kept-prefix-share", request.param)}
    settings = tiny_cluster(tmp_path_factory.mktemp("kept") / "run", DENSE, "1,4", extra_arguments=extra).settings
    async with LocalCluster(settings) as cluster, client_of(cluster) as opened:
        yield opened


async def test_what_is_asked_later_says_the_same_and_begins_with_what_was_kept(client: PipelineClient) -> None:
    """Each run of all questions comes after all sessions of the one before have ended; so does each question."""
    is_kept = "0.5" in client.cluster.settings.extra_arguments["conductor"]
    expected = [reference_tokens(DENSE, (PICTURE,), question, MAX_TOKENS) for question in QUESTIONS]
    for _ in range(2):
        for question, tokens in zip(QUESTIONS, expected, strict=True):
            job_id = await client.submit(PICTURE, prompt=question, max_tokens=MAX_TOKENS)
            assert await client.run([job_id]) == [tokens]
            await client.wait_empty()
    num_sessions = 2 * len(QUESTIONS)
    status = await status_when(client.cluster, lambda status: _finished(status) == num_sessions)
    assert status.conductor is not None
    kept = status.conductor.kept
    assert kept.num_hits == (num_sessions - 1) * is_kept
    assert kept.num_hit_tokens == status.conductor.num_copied_tokens >= kept.num_hits * 64
    assert [stage.kv_kept_tokens for stage in status.conductor.stages] == [kept.num_tokens] * 3
    assert status.conductor.num_replays == 0
    assert is_kept or kept == KeptCounts()


def _finished(status: PipelineStatus) -> int:
    return status.conductor.num_finished.get("succeeded", 0) if status.conductor else 0
