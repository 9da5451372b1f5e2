"""A stage and a vision worker in one process: the tokens of two processes, other stages fed by wire, kills, drains."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from broker_pipeline.errors import ServerStartError
from broker_pipeline.planning.layout import Layout
from broker_pipeline.tools.local.cuts import parse_cut
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, NUM_LAYERS, tiny_cluster
from tests.kit.running.drill import run_command
from tests.kit.running.gateway_process import until_metrics
from tests.kit.running.pipeline_client import PipelineClient, client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MAX_TOKENS = 12
SHARED = {"vision_stages": (0,), "num_vision_workers": 0}
JOBS = [
    ((picture(1),), "Describe this picture in one sentence."),
    ((picture(2, 200, 80),), "What is in the middle of it?"),
    ((picture(3, 64, 64), picture(4, 120, 90)), "What is different between the two?"),
    ((), "Tell me a story."),
    ((picture(5, 256, 256),), "Hm?"),
]


def expected_tokens(max_tokens: int = MAX_TOKENS) -> list[list[int]]:
    return [reference_tokens(DENSE, pictures, prompt, max_tokens) for pictures, prompt in JOBS]


async def check_tokens(client: PipelineClient) -> None:
    assert not [name for name in client.cluster.processes if name.startswith("vision")]
    submissions = (client.submit(*pictures, prompt=prompt, max_tokens=MAX_TOKENS) for pictures, prompt in JOBS)
    assert await client.run(await asyncio.gather(*submissions)) == expected_tokens()
    pictures, prompt = JOBS[0]
    await client.run([await client.submit(*pictures, prompt=prompt, max_tokens=MAX_TOKENS)])
    num_encoded = sum(len(pictures) for pictures, _ in JOBS)
    worker = 'vision_cache_{}_total{{worker="vision-stage-0"}}'
    await until_metrics(client.cluster.gateway_url, **{worker.format("hits"): 1, worker.format("misses"): num_encoded})


async def has_tokens(client: PipelineClient, job_id: str) -> bool:
    return bool(await client.tokens(job_id))


async def test_tokens_are_those_of_transformers_where_rows_go_on_by_wire_also_after_a_kill(tmp_path: Path) -> None:
    async with tiny_cluster(tmp_path, DENSE, "1,2", **SHARED) as cluster, client_of(cluster) as client:
        await check_tokens(client)
        submissions = (client.submit(*pictures, prompt=prompt, max_tokens=96) for pictures, prompt in JOBS)
        job_ids = await asyncio.gather(*submissions)
        await eventually(lambda: has_tokens(client, job_ids[0]))
        cluster.processes["stage-0"].kill()
        assert await client.run(job_ids) == expected_tokens(96)
        assert cluster.processes["stage-0"].num_restarts == 1


async def test_two_copies_of_two_stages_with_vision_on_every_stage(tmp_path: Path) -> None:
    layout = Layout(chains=(parse_cut("2", NUM_LAYERS),) * 2, vision="every")
    cluster = tiny_cluster(tmp_path, DENSE, "", num_vision_workers=0)
    cluster.settings = replace(cluster.settings, stages=layout.stages, vision_stages=layout.vision_stages)
    async with cluster, client_of(cluster) as client:
        submissions = (client.submit(*pictures, prompt=prompt, max_tokens=MAX_TOKENS) for pictures, prompt in JOBS * 2)
        assert await client.run(await asyncio.gather(*submissions)) == expected_tokens() * 2
        logs = [cluster.processes[f"stage-{index}"].log_path.read_text() for index in range(4)]
        assert sum('"session_prepared"' in log for log in logs) > 1, "pictures are shared out"


async def test_one_process_says_what_transformers_says_and_sigterm_drains_both_roles(tmp_path: Path) -> None:
    async with tiny_cluster(tmp_path, DENSE, "", **SHARED) as cluster, client_of(cluster) as client:
        await check_tokens(client)
        stage = cluster.processes["stage-0"]
        log = stage.log_path.read_text()
        assert log.count('"service_ready"') == 1
        assert '"vision_worker":"vision-stage-0"' in log.replace('": "', '":"')
        stage.kill(signal.SIGTERM)
        assert await stage.process.wait() == 0
        assert stage.log_path.read_text().count('"draining"') == 2
        await stage.restart()
        again = [await client.submit(picture(2), prompt="Describe it.", max_tokens=MAX_TOKENS)]
        assert await client.run(again) == [reference_tokens(DENSE, (picture(2),), "Describe it.", MAX_TOKENS)]


async def test_each_role_is_drained_by_its_own_name(tmp_path: Path) -> None:
    one = {"vision_stages": (0,), "num_vision_workers": 1}
    async with tiny_cluster(tmp_path, DENSE, "3", **one) as cluster, client_of(cluster) as client:
        stage = cluster.processes["stage-0"]
        assert await drain(client, "vision-stage-0") == 0
        submissions = (client.submit(*pictures, prompt=prompt, max_tokens=MAX_TOKENS) for pictures, prompt in JOBS)
        assert await client.run(await asyncio.gather(*submissions)) == expected_tokens()
        assert stage.state == "ready"
        assert '"session_prepared"' not in stage.log_path.read_text()
        assert await drain(client, "stage-0") == 0
        assert await stage.process.wait() == 0


async def drain(client: PipelineClient, worker: str) -> int:
    return (await run_command(client, "drain", worker, "--wait"))[0]


async def test_the_failure_of_either_ends_the_process_with_its_error(tmp_path: Path) -> None:
    wrong = {"stage": ("--vision-name", "stage-0")}
    cluster = tiny_cluster(tmp_path, DENSE, "", **SHARED, extra_arguments=wrong, restarts=False)
    with pytest.raises(ServerStartError, match=r"name.*stage-0"):
        await cluster.start()
    await cluster.stop()
