"""Workers are emptied while jobs run: no session fails, none even begins anew, and their processes end with 0."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import aiohttp
import pytest
import pytest_asyncio

from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.errors import PermissionDeniedError
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.drill import run_command, status_when
from tests.kit.running.pipeline_client import PipelineClient, client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150), pytest.mark.asyncio(loop_scope="module")]

MAX_TOKENS = 60
STAGES = (BlockRange(start=0, stop=3), BlockRange(start=3, stop=6), BlockRange(start=3, stop=6))
PROMPTS = [f"Tell me about number {number}." for number in range(8)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    settings = tiny_cluster(tmp_path_factory.mktemp("drain") / "run", DENSE, "3", num_vision_workers=2).settings
    async with LocalCluster(replace(settings, stages=STAGES)) as cluster, client_of(cluster) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return [reference_tokens(DENSE, (picture(n),), prompt, MAX_TOKENS) for n, prompt in enumerate(PROMPTS)]


async def submit_some(client: PipelineClient) -> list[str]:
    jobs = (client.submit(picture(n), prompt=prompt, max_tokens=MAX_TOKENS) for n, prompt in enumerate(PROMPTS))
    return list(await asyncio.gather(*jobs))


async def submit_while(client: PipelineClient, draining: asyncio.Future[tuple[int, str, str]]) -> list[str]:
    """Submit some jobs after the other, each when the last have begun to end, until the drain is over."""
    job_ids: list[str] = []
    while not draining.done():
        some = await submit_some(client)
        await client.wait_any(some, 1)
        job_ids += some
    return job_ids


async def check(client: PipelineClient, job_ids: list[str], expected: list[list[int]]) -> None:
    tokens = await client.run(job_ids)
    assert tokens == expected * (len(job_ids) // len(expected))
    assert {record.attempt for record in await client.records(job_ids)} == {1}, "a session began anew"


async def sessions_by_route(client: PipelineClient) -> dict[tuple[str, ...], int]:
    async with GatewayClient.open(client.cluster.gateway_url) as operator:
        conductor = (await operator.status()).conductor
    assert conductor is not None
    return {route.workers: route.num_sessions for route in conductor.routes}


async def submit_until(client: PipelineClient, condition: Callable[[list[int]], bool]) -> list[str]:
    """Submit jobs until the routes' numbers of sessions are as they should be; these are shown once a second."""
    job_ids: list[str] = []
    async with asyncio.timeout(100):
        while True:
            job_ids += await submit_some(client)
            for _ in range(50):
                if condition(list((await sessions_by_route(client)).values())):
                    return job_ids
                await asyncio.sleep(0.02)


async def test_strangers_drain_nobody_and_files_are_nobody_elses(client: PipelineClient) -> None:
    url, data_dir = client.cluster.gateway_url, client.cluster.settings.data_dir
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/workers/stage-1/drain") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (403, "permission_denied")
    assert data_dir.stat().st_mode & 0o777 == 0o700
    assert (data_dir / "operator.token").stat().st_mode & 0o777 == 0o600
    async with GatewayClient.open(url, key="no key at all") as stranger:
        with pytest.raises(PermissionDeniedError):
            await stranger.drain("stage-1")
    assert (data_dir / "redis.url").read_text() == client.cluster.redis_url, "where `keys` finds it"


async def test_a_stage_is_drained_while_jobs_run(client: PipelineClient, expected: list[list[int]]) -> None:
    job_ids = await submit_until(client, lambda counts: len(counts) == 2 and min(counts) > 0)
    draining = asyncio.ensure_future(run_command(client, "drain", "stage-1", "--wait", "--timeout-s", "60"))
    job_ids += await submit_while(client, draining)
    code, out, err = await draining
    assert (code, err) == (0, "")
    assert "stage-1 has ended" in out
    await check(client, job_ids, expected)

    program = client.cluster.processes["stage-1"]
    await eventually(lambda: program.state == "stopped")
    assert program.process.returncode == 0
    assert list(await sessions_by_route(client)) == [("stage-0", "stage-2")]
    await check(client, await submit_some(client), expected)
    assert (program.state, program.num_restarts) == ("stopped", 0), "nobody starts again what was drained"


async def test_a_vision_worker_is_drained_while_jobs_run(client: PipelineClient, expected: list[list[int]]) -> None:
    job_ids = await submit_some(client)
    draining = asyncio.ensure_future(run_command(client, "drain", "vision-0", "--wait", "--timeout-s", "60"))
    job_ids += await submit_while(client, draining)
    assert (await draining)[0] == 0
    await check(client, job_ids, expected)
    program = client.cluster.processes["vision-0"]
    await eventually(lambda: program.state == "stopped")
    assert program.process.returncode == 0


async def test_the_last_worker_for_its_layers_finishes_its_sessions_and_jobs_wait(
    client: PipelineClient, expected: list[list[int]]
) -> None:
    code, _, err = await run_command(client, "drain", "stage-9")
    assert (code, "there are: " in err, "Traceback" in err) == (2, True, False)
    job_ids = await submit_until(client, lambda counts: sum(counts) >= 4)
    code, out, err = await run_command(client, "drain", "stage-2", "--wait")
    assert (code, "stage-2 has ended" in out) == (0, True)
    assert "nobody else does what stage-2 did" in err
    late = await client.submit(picture(0), prompt=PROMPTS[0], max_tokens=MAX_TOKENS)
    await status_when(client.cluster, lambda status: status.queue.num_waiting == 1 and status.conductor.waits_for)
    assert (await client.records([late]))[0].status == "queued"
    await client.cluster.processes["stage-2"].restart()
    await check(client, job_ids, expected)
    assert await client.run([late]) == expected[:1]
