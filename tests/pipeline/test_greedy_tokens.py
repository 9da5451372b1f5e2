"""The running pipeline says what transformers says: dense and MoE, several cuts, any edge, many jobs at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.workers import TransportCounts
from tests.kit.models.reference import reference_tokens
from tests.kit.models.transformers_oracle import Variant
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, MOE, tiny_cluster
from tests.kit.running.drill import status_when
from tests.kit.running.pipeline_client import client_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NUM_JOBS = 8
MAX_TOKENS = 16
SENDERS = {"vision-0", "stage-0", "stage-1", "stage-2"}

JOBS = [
    ((picture(1),), "Describe this picture in one sentence."),
    ((picture(2, 200, 80),), "What is in the middle of it?"),
    ((picture(3, 64, 64), picture(4, 120, 90)), "What is different between the two?"),
    ((), "Tell me a story about a lighthouse and its keeper, and leave nothing out."),
    ((picture(5, 256, 256),), "Hm?"),
    ((picture(6, 300, 100, "JPEG"),), "Is this a photograph? " * 12),
    ((picture(7),) * 3, "Count."),
    ((picture(1),), "Describe this picture in one sentence, again."),
]


def expected_of(variant: Variant) -> list[list[int]]:
    expected = [reference_tokens(variant, pictures, prompt, MAX_TOKENS) for pictures, prompt in JOBS]
    assert len({tuple(tokens) for tokens in expected}) == NUM_JOBS, "the jobs are to be told apart"
    return expected


async def test_tokens_of_experts_equal_those_of_transformers(tmp_path: Path) -> None:
    expected = expected_of(MOE)
    async with tiny_cluster(tmp_path / "run", MOE, "1,2,3") as cluster, client_of(cluster) as client:
        submissions = (client.submit(*pictures, prompt=prompt, max_tokens=MAX_TOKENS) for pictures, prompt in JOBS)
        job_ids = await asyncio.gather(*submissions)
        assert await client.run(job_ids) == expected


def sent_by(status: PipelineStatus) -> dict[str, TransportCounts]:
    """Return what workers have told of so far."""
    return dict(status.conductor.transport) if status.conductor is not None else {}


@pytest.mark.parametrize("edges", ["nats", "shm", "tcp"])
async def test_tokens_equal_those_of_transformers_whatever_carries_payloads(tmp_path: Path, edges: str) -> None:
    expected = expected_of(DENSE)
    flags = {"--edges": edges}
    async with (
        tiny_cluster(tmp_path / "run", DENSE, "1,2,3", edge_flags=flags) as cluster,
        client_of(cluster) as client,
    ):

        async def run_all() -> None:
            submissions = (client.submit(*pictures, prompt=prompt, max_tokens=MAX_TOKENS) for pictures, prompt in JOBS)
            assert await client.run(await asyncio.gather(*submissions)) == expected

        await run_all()  # makes the edges
        await run_all()
        if edges == "nats":
            status = await status_when(cluster, lambda status: sent_by(status).keys() >= SENDERS)
            assert not any(counts.carried for counts in sent_by(status).values())
        else:
            await status_when(
                cluster,
                lambda status: {name for name, counts in sent_by(status).items() if edges in counts.carried} >= SENDERS,
            )
