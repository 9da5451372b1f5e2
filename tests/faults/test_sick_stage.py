"""A stage that lives and is sick, or slow, beside a healthy one: 80 jobs, all right; once it is well, it is back."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from broker_pipeline.messages.gateway import PipelineStatus
from tests.kit.running.drill import (
    LogLine,
    crowd_questions,
    fault_cluster,
    log_lines,
    run_command,
    status_when,
    undisturbed,
)
from tests.kit.running.pipeline_client import PipelineClient, client_of
from tests.kit.running.sick_stage import SickStage

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

QUESTIONS = crowd_questions(80, 24)
LONG = crowd_questions(8, 160)


@dataclass(frozen=True)
class Ward:
    """A pipeline with one stage that can fall ill, and what its jobs say."""

    client: PipelineClient
    sick: SickStage
    expected: list[list[int]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ward(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ward]:
    directory = tmp_path_factory.mktemp("sick")
    cluster = fault_cluster(directory / "run", "3")
    async with cluster, client_of(cluster) as client:
        expected = await undisturbed(client, QUESTIONS)
        sick = SickStage(cluster, directory, "sick", "0:3")
        await sick.start()
        await status_when(cluster, lambda status: len(status.conductor.routes) == 2)
        try:
            yield Ward(client, sick, expected)
        finally:
            await sick.stop(10)


def shown(status: PipelineStatus, name: str) -> tuple[str, str]:
    """Return a stage's state, and the reason for it."""
    assert status.conductor is not None
    return next((each.state, each.reason) for each in status.conductor.stages if each.worker == name)


async def test_its_computations_fail_and_no_job_does(ward: Ward) -> None:
    client, cluster = ward.client, ward.client.cluster
    log = cluster.processes["conductor-0"].log_path
    ward.sick.sicken("fail")
    assert await undisturbed(client, QUESTIONS) == ward.expected
    assert any(shown_reason(line) for line in log_lines(log, event="worker_suspended"))
    status = await status_when(cluster, lambda status: shown(status, "sick")[0] in ("suspended", "trial"))
    assert "out of memory" in shown(status, "sick")[1]
    _, out, _ = await run_command(client, "status")
    assert re.search(r"sick is (suspended|on trial): .*out of memory", " ".join(out.split()))
    ward.sick.heal()
    async with asyncio.timeout(60):
        while not log_lines(log, event="worker_is_well"):
            assert await undisturbed(client, QUESTIONS[:12]) == ward.expected[:12]
    await status_when(cluster, lambda status: shown(status, "sick") == ("ready", ""), what="sick is well")
    await client.wait_empty()


def shown_reason(line: LogLine) -> bool:
    return line.facts["reason"] == "its computations fail: out of memory"


async def test_it_becomes_slow_and_its_sessions_go_on_elsewhere(ward: Ward) -> None:
    client, cluster = ward.client, ward.client.cluster
    expected = await undisturbed(client, LONG)
    ward.sick.sicken("0.5")
    started = time.monotonic()
    assert await undisturbed(client, LONG) == expected
    took_s = time.monotonic() - started
    print(f"slow: {took_s:.1f} s")
    ward.sick.heal()
    log = cluster.processes["conductor-0"].log_path
    moved = [line for line in log_lines(log, event="attempt_lost") if "is slow" in line.facts["reason"]]
    assert moved, "sessions were moved"
    assert took_s < 60, "160 steps there are 80 s"
    await client.wait_empty()


async def test_without_another_its_jobs_end_with_its_reason_until_it_is_well(ward: Ward) -> None:
    """The last of this pipeline, which has no other stage for these layers from here on."""
    client, cluster = ward.client, ward.client.cluster
    assert (await run_command(client, "drain", "stage-0", "--wait"))[0] == 0
    ward.sick.sicken("fail")
    job_ids = [await client.submit(prompt=each.prompt, **each.sampling) for each in QUESTIONS[:12]]
    for record in await client.wait(job_ids, timeout_s=30):
        assert record.error is not None, record
        assert record.error.message.endswith("out of memory (on sick)")
        assert record.attempt <= 5
    await status_when(
        cluster, lambda status: shown(status, "sick") == ("ready", "its computations fail: out of memory")
    )
    _, out, _ = await run_command(client, "status")
    assert "sick: its computations fail: out of memory" in " ".join(out.split())
    ward.sick.heal()
    assert await undisturbed(client, QUESTIONS[:12]) == ward.expected[:12]
    await status_when(cluster, lambda status: shown(status, "sick") == ("ready", ""))
