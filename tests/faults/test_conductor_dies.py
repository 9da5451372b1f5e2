"""The active conductor dies, or hangs and wakes too late: the standby resumes what clients have seen, and repeats none.

Followers assert that no token is told twice. The printed figures are those of "Failure drill" in docs/operations.md.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.running.drill import (
    Crowd,
    Drill,
    LogLine,
    crowd_questions,
    decoding,
    fault_cluster,
    log_lines,
    undisturbed,
)
from tests.kit.running.pipeline_client import client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 20
NUM_IN_FLIGHT = 8
QUESTIONS = crowd_questions(NUM_JOBS, 140)
TAKEOVER_S = 5.0
"""On a machine that does other things as well. The lease ends, and jobs come back by themselves, after ten."""
CONDUCTORS = ("conductor-0", "conductor-1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drill(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    directory = tmp_path_factory.mktemp("conductors") / "run"
    cluster = fault_cluster(directory, "3", num_conductors=2)
    async with cluster, client_of(cluster) as client:
        yield Drill(client, await undisturbed(client, QUESTIONS))


def terms(cluster: LocalCluster, since: float = 0.0) -> list[tuple[LogLine, str]]:
    """Return every tenure that has begun, in order, with the conductor's name."""
    begun = [
        (line, name)
        for name in CONDUCTORS
        for line in log_lines(cluster.processes[name].log_path, since, "tenure_begins")
    ]
    return sorted(begun, key=lambda term: term[0].at)


def roles(cluster: LocalCluster) -> tuple[str, str]:
    """Return the names of the active conductor and of the standby."""
    active = terms(cluster)[-1][1]
    return active, next(name for name in CONDUCTORS if name != active)


def took_over(cluster: LocalCluster, crowd: Crowd, since: float, what: str) -> str:
    """Hold the takeover against its deadline and what was resumed against what had been streamed; return by whom."""
    [(term, successor), *_] = terms(cluster, since)
    assert term.at - since < TAKEOVER_S
    before = terms(cluster)
    epochs = [line.facts["epoch"] for line, _ in before]
    assert epochs == sorted(set(epochs)), "each epoch is higher than the one before"
    resumed = log_lines(cluster.processes[successor].log_path, since, "attempt_begun")
    num_resumed = sum(line.facts["num_tokens"] > 0 for line in resumed)
    assert num_resumed > 0, "they went on from tokens in Redis"
    first = [each.first_token_after(term.at) - since for each in crowd.followers if each.token_times[-1] > term.at]
    print(
        f"\n{what}: the next tenure began after {term.at - since:.2f} s, first new tokens after "
        f"{min(first):.2f} to {max(first):.2f} s; {num_resumed} sessions resumed"
    )
    return successor


async def test_the_active_conductor_is_killed(drill: Drill) -> None:
    client, cluster = drill.client, drill.client.cluster
    active, _ = roles(cluster)
    async with decoding(client, QUESTIONS, 20, at_once=NUM_IN_FLIGHT) as crowd:
        died_at = time.time()
        cluster.processes[active].kill()
        assert await crowd.finish() == drill.expected
        took_over(cluster, crowd, died_at, "conductor killed")  # the standby, or the former one started again
    await client.wait_empty()
    await cluster.processes[active].wait_ready()


async def test_the_active_conductor_hangs_and_wakes_when_it_has_a_successor(drill: Drill) -> None:
    client, cluster = drill.client, drill.client.cluster
    active, standby = roles(cluster)
    async with decoding(client, QUESTIONS, 20, at_once=NUM_IN_FLIGHT) as crowd:
        hung_at = time.time()
        cluster.processes[active].kill(signal.SIGSTOP)
        try:
            log = cluster.processes[standby].log_path
            await eventually(lambda: bool(log_lines(log, hung_at, "attempt_begun")))
        finally:
            cluster.processes[active].kill(signal.SIGCONT)
        woken_at = time.time()
        assert await crowd.finish() == drill.expected, "the late one is fenced: it neither adds nor changes a token"
        assert took_over(cluster, crowd, hung_at, "conductor hung and woken") == standby
    await eventually(lambda: bool(log_lines(cluster.processes[active].log_path, woken_at, "tenure_lost")))
    assert roles(cluster) == (standby, active), "the late one is the standby now"
    assert cluster.processes[active].process.is_running
    await client.wait_empty()
