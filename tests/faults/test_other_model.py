"""Everything is killed while jobs are under way, and started with another artifact: no answer is of two models."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from broker_pipeline.artifact_manifest import read_manifest
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.plan import LocalSettings
from broker_pipeline.tools.local.run import run_cluster
from broker_pipeline.tools.local.view import PlainView
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.running.clusters import DENSE
from tests.kit.running.drill import Crowd, crowd_questions, decoding, fault_cluster, run_command, undisturbed
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 12
QUESTIONS = crowd_questions(NUM_JOBS, 200)
NUM_TOLD = 20
"""Tokens that clients have seen when everything is killed."""


def artifact(seed: int) -> Path:
    return tiny_artifact(moe=False, tied=True, dtype=DENSE.dtype, expert_layout="runtime", seed=seed)


@dataclass
class Interrupted:
    """Jobs of the first model that everything was killed under, still followed by their clients."""

    settings: LocalSettings
    crowd: Crowd
    expected: list[list[int]]
    output: io.StringIO

    async def go_on(self, work: Callable[[PipelineClient], Coroutine[Any, Any, None]], **changes: Any) -> None:
        """Run `up` where the killed one was, with other settings."""

        async def serve(cluster: LocalCluster) -> None:
            async with client_of(cluster) as client:
                self.crowd.client = client
                await work(client)

        view = PlainView(Console(file=self.output, width=1000))
        assert await run_cluster(replace(self.settings, **changes), view, serve) == 0


@asynccontextmanager
async def interrupted(directory: Path) -> AsyncIterator[Interrupted]:
    quick = {"conductor": ("--ack-wait-s", "3", "--lease-ttl-s", "3")}
    cluster = fault_cluster(directory / "run", "3", model=artifact(0), extra_arguments=quick, port=free_port())
    await cluster.start()
    try:
        async with client_of(cluster) as client:
            expected = await undisturbed(client, QUESTIONS)
            async with decoding(client, QUESTIONS, NUM_TOLD, at_once=NUM_JOBS) as crowd:
                await cluster.destroy()
                yield Interrupted(cluster.settings, crowd, expected, io.StringIO())
    finally:
        await cluster.destroy()


async def test_they_begin_again_and_every_client_is_told(tmp_path: Path) -> None:
    async with interrupted(tmp_path) as before:

        async def work(client: PipelineClient) -> None:
            tokens = await before.crowd.finish()
            assert tokens == await undisturbed(client, QUESTIONS), "what this model says, from the first token on"
            assert all(said != other for said, other in zip(tokens, before.expected, strict=True))

        await before.go_on(work, model=artifact(1))
        fingerprint = read_manifest(artifact(1)).fingerprint
        for follower in before.crowd.followers:
            assert follower.num_restarts == 1
            assert follower.record is not None
            assert (follower.record.fingerprint, follower.record.first_attempt) == (fingerprint, 2)
        said = before.output.getvalue()
        assert f"jobs under way that another model has begun: {NUM_JOBS}; they begin again from token 0" in said
        assert said.index("another model") < said.index("stage-0 starting"), "before anything works on them"

        for is_noticed in True, False:
            before.output.truncate(before.output.seek(0))
            await before.go_on(PipelineClient.wait_empty, model=artifact(0))
            said = before.output.getvalue().replace("\n", " ")
            assert (f"was last used with another model, {artifact(1)}; its results are kept" in said) is is_noticed


async def test_they_fail_where_that_was_chosen_and_can_be_sent_again(tmp_path: Path) -> None:
    async with interrupted(tmp_path) as before:

        async def work(client: PipelineClient) -> None:
            job_ids = [follower.job_id for follower in before.crowd.followers]
            records = await client.wait(job_ids)
            assert {record.error.code for record in records if record.error} == {"model_changed"}
            for record, expected in zip(records, before.expected, strict=True):
                assert record.fingerprint == read_manifest(artifact(0)).fingerprint
                tokens = await client.tokens(record.job_id)
                assert tokens == expected[: len(tokens)], "those of the first model are still there"
                assert len(tokens) >= NUM_TOLD
            code, out, err = await run_command(client, "failed", "retry", "--all", "--wait")
            assert code == 0, out + err
            assert await client.run(job_ids) == await undisturbed(client, QUESTIONS)
            assert (await client.counts())["failed"] == 0

        await before.go_on(work, model=artifact(1), on_other_model="fail")
        assert f"has begun: {NUM_JOBS}; they fail as model_changed" in before.output.getvalue()


async def test_with_the_same_artifact_they_go_on_and_nobody_notices(tmp_path: Path) -> None:
    async with interrupted(tmp_path) as before:

        async def work(client: PipelineClient) -> None:
            assert await before.crowd.finish() == before.expected

        await before.go_on(work)
        assert [follower.num_restarts for follower in before.crowd.followers] == [0] * NUM_JOBS
        assert "another model" not in before.output.getvalue()
