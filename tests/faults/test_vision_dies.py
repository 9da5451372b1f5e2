"""A vision worker dies or hangs with requests in hand: whoever it keeps waiting is prepared by another at once."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.tools.local.supervisor import SupervisedProgram
from tests.kit.pictures import picture
from tests.kit.running.drill import Asked, Drill, fault_cluster, status_when, submitted, undisturbed
from tests.kit.running.pipeline_client import client_of

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 16
MOST_S = 3.0
"""To the first token, of whoever had to wait longest."""


def questions(first: int) -> list[Asked]:
    """Return jobs with pictures that nobody has encoded yet."""
    return [
        Asked(f"What is in picture {number}?", (picture(number),), {"max_tokens": 3, "ignore_eos": True})
        for number in range(first, first + NUM_JOBS)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drill(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    cluster = fault_cluster(tmp_path_factory.mktemp("vision") / "run", "3", num_vision_workers=2)
    async with cluster, client_of(cluster) as client:
        for first in (1000, 1100):
            expected = await undisturbed(client, questions(first))
        yield Drill(client, expected)


def kill(victim: SupervisedProgram) -> None:
    victim.kill()


def leave_stopped(_: SupervisedProgram) -> None:
    pass


@pytest.mark.parametrize(("number", "then"), [(0, kill), (1, leave_stopped)])
async def test_it_ends_with_requests_in_hand(
    drill: Drill, number: int, then: Callable[[SupervisedProgram], None]
) -> None:
    client, cluster = drill.client, drill.client.cluster
    await status_when(cluster, lambda status: num_ready(status.conductor) == 2)
    victim = cluster.processes[f"vision-{number}"]
    victim.kill(signal.SIGSTOP)
    try:
        async with submitted(client, questions(100 * number)) as crowd:
            fault_at = time.time()
            then(victim)
            await crowd.finish()
            waits = sorted(each.token_times[0] - fault_at for each in crowd.followers)
    finally:
        victim.kill(signal.SIGCONT)
    records = await client.records([each.job_id for each in crowd.followers])
    num_attempts = sorted(record.attempt for record in records)
    print(f"\n{then.__name__}: first tokens after p50 {waits[NUM_JOBS // 2]:.2f} s, worst {waits[-1]:.2f} s")
    assert waits[-1] < MOST_S
    assert num_attempts[-1] <= (1 if then is leave_stopped else 2), "only a death ends an attempt"
    await client.wait_empty()


async def test_the_last_one_hangs_until_it_counts_as_dead_and_serves_what_waits_when_it_wakes(drill: Drill) -> None:
    client, cluster = drill.client, drill.client.cluster
    await status_when(cluster, lambda status: num_ready(status.conductor) == 2)
    workers = [cluster.processes[f"vision-{number}"] for number in range(2)]
    for worker in workers:
        worker.kill(signal.SIGSTOP)
    try:
        async with submitted(client, questions(300)) as crowd:
            await status_when(cluster, lambda status: num_ready(status.conductor) == 0)
            woken_at = time.time()
            workers[0].kill(signal.SIGCONT)
            await crowd.finish()
            waits = sorted(each.token_times[0] - woken_at for each in crowd.followers)
    finally:
        for worker in workers:
            worker.kill(signal.SIGCONT)
    print(f"\nwoken: first tokens after p50 {waits[NUM_JOBS // 2]:.2f} s, worst {waits[-1]:.2f} s")
    assert waits[-1] < MOST_S
    await client.wait_empty()


def num_ready(conductor: ConductorStatus | None) -> int:
    return 0 if conductor is None else sum(worker.state == "ready" for worker in conductor.vision)
