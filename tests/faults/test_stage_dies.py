"""A stage dies, or hangs and wakes, while a crowd is being decoded: nobody can tell from the outputs.

Half of the jobs are greedy, half are sampled by seed; each says what it says when nothing happens. The printed figures
(`pytest -s`) are those of "Failure drill" in docs/operations.md.
"""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import AsyncIterator

import jsonschema
import pytest
import pytest_asyncio

from broker_pipeline.messages.gateway import PipelineStatus
from tests.kit.running.drill import (
    Asked,
    Drill,
    Follower,
    crowd_questions,
    decoding,
    fault_cluster,
    jobs_lost,
    log_lines,
    shortened,
    status_when,
    undisturbed,
)
from tests.kit.running.pipeline_client import PipelineClient, client_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 20
NUM_IN_FLIGHT = 8
QUESTIONS = crowd_questions(NUM_JOBS, 240)
NUM_FEW = 100
"""Tokens of a crowd that only has to come through a stage."""
MAX_DETECTION_S = 10.0
"""By heartbeats, which are missed after 2.5 s, and not by the deadlines of messages; the rest is for the machine."""
MAX_DEATH_DETECTION_S = 1.5
"""By its edges, which end with it: heartbeats, one a second, cannot be missed for 2.5 s before that."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def with_spares(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    cluster = fault_cluster(tmp_path_factory.mktemp("spares") / "run", "3", num_each=2)
    async with cluster, client_of(cluster) as client:
        yield Drill(client, await undisturbed(client, QUESTIONS))


def report(what: str, died_at: float, detected_at: float, affected: list[Follower], others: list[Follower]) -> float:
    """Print the figures of one death and return the longest gap on other routes."""
    first = [each.first_token_after(detected_at) - detected_at for each in affected]
    until = detected_at + max(first)
    running = [each for each in others if each.token_times[-1] > died_at]
    assert running, "nobody elsewhere was still being served"
    gap_s = max(each.longest_gap_s(died_at, min(until, each.token_times[-1])) for each in running)
    calm = [each.longest_gap_s(each.token_times[0], died_at) for each in others]
    print(
        f"\n{what}: {len(affected)} sessions lost; detected after {detected_at - died_at:.2f} s; first new token "
        f"{min(first):.2f} s later, of the last session {max(first):.2f} s; {len(running)} sessions on other routes: "
        f"longest gap {gap_s:.2f} s, before the fault {max(calm, default=0.0):.2f} s "
        f"(median {statistics.median(calm) if calm else 0.0:.2f} s)"
    )
    return gap_s


def detected_at(client: PipelineClient, since: float, victim: str) -> float:
    """Return when a conductor saw that the victim was silent, or that another process has its name already."""
    lines = log_lines(client.cluster.processes["conductor-0"].log_path, since)
    seen = [line for line in lines if line.event in {"worker_suspended", "worker_left"}]
    return next(
        line.at for line in seen if victim in (line.facts.get("worker"), line.facts["reason"].partition(" ")[0])
    )


async def test_a_stage_is_killed_and_a_spare_takes_over(with_spares: Drill) -> None:
    client, cluster = with_spares.client, with_spares.client.cluster
    async with decoding(client, QUESTIONS, 20, at_once=NUM_IN_FLIGHT) as crowd:
        died_at = time.time()
        cluster.processes["stage-3"].kill()
        assert await crowd.finish() == with_spares.expected
    affected, others = crowd.split(jobs_lost(cluster, died_at))
    assert affected, "the victim had sessions"
    assert others, "the other route had sessions"
    noticed_at = detected_at(client, died_at, "stage-3")
    gap_s = report("stage killed, with a spare", died_at, noticed_at, affected, others)
    assert noticed_at - died_at < MAX_DEATH_DETECTION_S
    assert gap_s < MAX_DEATH_DETECTION_S, "the others did not wait for anything"
    await status_when(cluster, lambda status: len(status.conductor.stages) == 4 and len(status.conductor.routes) == 2)
    await client.wait_empty()


WORDS = {
    "type": "array",
    "minItems": 25,
    "maxItems": 25,
    "items": {"type": "string", "pattern": "^[a-z]{6}$"},
    "x-guidance": {"whitespace_flexible": False},  # random weights would say little else
}


async def test_the_last_stage_is_killed_in_the_middle_of_a_schema(with_spares: Drill) -> None:
    """What takes over has the grammar from the tokens so far: the answers are whole, and the same to the byte."""
    client, cluster = with_spares.client, with_spares.client.cluster
    sampling = {"max_tokens": 400, "temperature": 1.5, "structured_outputs": {"json": WORDS}}
    questions = [Asked(f"List {number} words.", (), sampling | {"seed": number}) for number in range(4)]
    expected = await undisturbed(client, questions)
    async with decoding(client, questions, 20, at_once=3) as crowd:
        died_at = time.time()
        cluster.processes["stage-3"].kill()
        assert await crowd.finish() == expected
    affected, _ = crowd.split(jobs_lost(cluster, died_at))
    assert affected, "the victim had sessions"
    for follower in crowd.followers:
        assert follower.record is not None
        assert follower.record.result is not None
        assert follower.record.result.finish_reason == "stop"
        jsonschema.validate(json.loads(follower.record.result.text), WORDS)
    await status_when(cluster, lambda status: len(status.conductor.stages) == 4 and len(status.conductor.routes) == 2)
    await client.wait_empty()


async def test_a_stage_hangs_is_fenced_and_serves_again_when_it_wakes(with_spares: Drill) -> None:
    client, cluster = with_spares.client, with_spares.client.cluster
    victim = cluster.processes["stage-0"]
    async with decoding(client, QUESTIONS, 20, at_once=NUM_IN_FLIGHT) as crowd:
        hung_at = time.time()
        victim.kill(signal.SIGSTOP)
        try:
            assert await crowd.finish() == with_spares.expected, "everything ends while it still hangs"
            status = await status_when(
                cluster, lambda status: any(s.state == "suspended" for s in status.conductor.stages)
            )
            assert [stage.worker for stage in status.conductor.stages if stage.state == "suspended"] == ["stage-0"]
            await status_when(cluster, lambda status: "stage-0" not in [record.worker for record in status.workers])
        finally:
            victim.kill(signal.SIGCONT)
    woken_at = time.time()
    affected, others = crowd.split(jobs_lost(cluster, hung_at))
    assert affected
    assert others
    noticed_at = detected_at(client, hung_at, "stage-0")
    assert noticed_at - hung_at < MAX_DETECTION_S
    assert report("stage hung, with a spare", hung_at, noticed_at, affected, others) < noticed_at - hung_at, (
        "the others did not wait for that"
    )
    await status_when(cluster, lambda status: all(stage.state == "ready" for stage in status.conductor.stages))
    [rejoined] = log_lines(cluster.processes["conductor-0"].log_path, woken_at, "worker_answers_again")
    print(f"woken: serves again after {rejoined.at - woken_at:.2f} s")
    assert rejoined.facts["worker"] == "stage-0"
    assert victim.process.is_running
    await serves(client, "stage-0", with_spares.expected)


def suspended(status: PipelineStatus) -> list[str]:
    assert status.conductor is not None
    return [stage.worker for stage in status.conductor.stages if stage.state == "suspended"]


async def serves(client: PipelineClient, stage: str, expected: list[list[int]]) -> None:
    """The crowd says the same, some of it through this stage; afterwards nothing is left in any KV."""
    questions, expected = shortened(QUESTIONS, expected, NUM_FEW)
    async with decoding(client, questions, 2, at_once=NUM_IN_FLIGHT) as crowd:
        await status_when(
            client.cluster,
            lambda status: any(stage in route.workers and route.num_sessions for route in status.conductor.routes),
            what=f"a route with sessions through {stage}",
        )
        assert await crowd.finish() == expected
    await client.wait_empty()


async def test_a_stage_without_a_spare_is_started_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    cluster = fault_cluster(tmp_path_factory.mktemp("restart") / "run", "3")
    async with cluster, client_of(cluster) as client:
        questions = crowd_questions(NUM_JOBS, NUM_FEW)
        expected = await undisturbed(client, questions)
        async with decoding(client, questions, 20, at_once=NUM_IN_FLIGHT) as crowd:
            died_at = time.time()
            cluster.processes["stage-1"].kill()
            assert await crowd.finish() == expected
        affected, _ = crowd.split(jobs_lost(cluster, died_at))
        assert len(affected) >= NUM_IN_FLIGHT
        noticed_at = detected_at(client, died_at, "stage-1")
        assert noticed_at - died_at < MAX_DETECTION_S
        joined = log_lines(cluster.processes["conductor-0"].log_path, died_at, "worker_joined")
        [again_at] = [line.at for line in joined if line.facts["worker"] == "stage-1"]
        print(f"\nstarted again and joined {again_at - died_at:.2f} s after its death")
        first = [each.first_token_after(again_at) - again_at for each in affected]
        print(
            f"stage killed, without a spare: first new tokens {min(first):.2f} to {max(first):.2f} s after its return"
        )
        await client.wait_empty()
