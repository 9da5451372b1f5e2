"""Workers that must not serve: another artifact on one host, a name that is in use. Others serve on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from broker_pipeline import exit_codes
from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.service import LocalService
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.running.drill import crowd_questions, fault_cluster, log_lines, status_when, undisturbed
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

QUESTIONS = crowd_questions(6, 24)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    cluster = fault_cluster(tmp_path_factory.mktemp("refused") / "run", "3")
    async with cluster, client_of(cluster) as opened:
        yield opened


def further_stage(client: PipelineClient, directory: Path, name: str, blocks: str, model: Path) -> LocalService:
    """A stage that joins a running pipeline, as one that somebody starts on another host."""
    cluster = client.cluster
    arguments = ["stage", "--model", str(model), "--name", name, "--blocks", blocks, "--kv-tokens", "4096"]
    arguments += ["--device", "cpu", "--threads", "1", "--log-format", "json"]
    arguments += ["--nats-url", cluster.nats_url, "--redis-url", cluster.redis_url]
    log, ready = directory / f"{name}.log", directory / f"{name}.ready"
    return LocalService(name, arguments, log_path=log, ready_path=ready, env={}, start_timeout_s=60)


async def test_a_wrong_artifact_on_one_host(client: PipelineClient, tmp_path: Path) -> None:
    other = tiny_artifact(moe=True, tied=False, expert_layout="runtime")
    expected = await undisturbed(client, QUESTIONS)
    stage = further_stage(client, tmp_path, "stale-host", "3:6", other)
    await stage.start()
    try:
        status = await status_when(client.cluster, lambda status: bool(status.conductor.refused), what="a refusal")
        assert status.conductor is not None
        [refused] = status.conductor.refused
        assert refused.worker == "stale-host"
        assert "artifact" in refused.reason
        assert "copy that artifact to every host" in refused.reason
        assert len(status.conductor.routes) == 1
        assert all("stale-host" not in route.workers for route in status.conductor.routes)
        assert await undisturbed(client, QUESTIONS) == expected, "the others serve on"
    finally:
        await stage.stop(10)
    mended = further_stage(client, tmp_path, "stale-host", "3:6", client.cluster.settings.model)
    await mended.start()
    try:
        status = await status_when(
            client.cluster, lambda status: len(status.conductor.routes) == 2, what="a route through the mended host"
        )
        assert status.conductor is not None
        assert not status.conductor.refused
        assert await undisturbed(client, QUESTIONS) == expected
    finally:
        await mended.stop(10)


async def test_a_second_worker_of_a_name_ends_and_says_who_has_it(client: PipelineClient, tmp_path: Path) -> None:
    cluster = client.cluster
    holder = cluster.processes["stage-1"].process
    second = further_stage(client, tmp_path, "stage-1", "3:6", cluster.settings.model)
    with pytest.raises(ServerStartError, match="exit status 75") as ended:
        await second.start()
    assert second.process.returncode == exit_codes.TEMPORARY
    [line] = log_lines(second.log_path, event="service_failed")
    assert line.facts["code"] == "worker_name_taken"
    assert f"pid {holder.pid}" in line.facts["message"]
    assert "another --name" in line.facts["message"]
    assert "another --name" in str(ended.value), "who started it sees why"
    assert holder.is_running
    async with asyncio.timeout(60):
        assert len(await undisturbed(client, QUESTIONS)) == len(QUESTIONS)
