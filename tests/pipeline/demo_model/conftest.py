"""A pipeline that tests of several files share, and OpenAI's client pointed at it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.pictures import trained_model
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import parse_cut
from broker_pipeline.tools.local.plan import LocalSettings
from tests.kit.running.pipeline_client import PipelineClient, client_of


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    """The demo model in three stages; tests that use it run on the package's loop, and break nothing."""
    directory = tmp_path_factory.mktemp("demo-model")
    artifact = await make_artifact(directory, trained_model())
    stages = parse_cut("1,2", 5)
    settings = LocalSettings(model=artifact, stages=stages, data_dir=directory / "run", drain_s=2.0)
    async with LocalCluster(settings) as cluster, client_of(cluster) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="package")
async def openai_client(demo: PipelineClient) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client, which tries nothing again."""
    url = f"{demo.cluster.gateway_url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="package")
async def model(openai_client: openai.AsyncOpenAI) -> str:
    """What the model is called."""
    return (await openai_client.models.list()).data[0].id
