"""A pipeline of a tiny model that tests of several files share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.pipeline_client import PipelineClient, client_of


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    """Two stages; tests that use it run on the package's loop, and break nothing."""
    directory = tmp_path_factory.mktemp("tiny-model") / "run"
    async with tiny_cluster(directory, DENSE, "2") as cluster, client_of(cluster) as opened:
        yield opened
