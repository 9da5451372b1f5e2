"""Whatever carries hidden states and visual rows, a pipeline says what one process says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kit.models.reference import reference_tokens
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.drill import status_when
from tests.kit.running.pipeline_client import client_of
from tests.pipeline.test_greedy_tokens import JOBS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MAX_TOKENS = 4
SENDERS = ("vision-0", "stage-0", "stage-1", "stage-2")


@pytest.mark.parametrize("edges", ["nats", "shm"])
async def test_tokens_do_not_depend_on_what_carries_payloads(tmp_path: Path, edges: str) -> None:
    expected = [reference_tokens(DENSE, pictures, prompt, MAX_TOKENS) for pictures, prompt in JOBS]
    async with tiny_cluster(tmp_path / "run", DENSE, "1,2,3", edges=edges) as cluster, client_of(cluster) as client:

        async def run_all() -> None:
            submissions = (client.submit(*pictures, prompt=prompt, max_tokens=MAX_TOKENS) for pictures, prompt in JOBS)
            assert await client.run(await asyncio.gather(*submissions)) == expected

        await run_all()  # makes the edges
        await run_all()
        if edges == "nats":
            status = await status_when(cluster, lambda status: bool(status.conductor.transport["stage-1"]))
            assert not any(counts.carried for counts in status.conductor.transport.values())
        else:
            await status_when(
                cluster, lambda status: all(edges in status.conductor.transport[name].carried for name in SENDERS)
            )
