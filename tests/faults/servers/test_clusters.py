"""NATS as a cluster of three and Redis behind Sentinel: members die under load, no job fails and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from broker_pipeline import subjects
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.servers import EmbeddedRedis
from tests.kit.running.drill import Crowd, Drill, crowd_questions, decoding, fault_cluster, undisturbed
from tests.kit.running.moving_endpoint import moving_endpoint
from tests.kit.running.nats_cluster import NatsCluster, nats_cluster
from tests.kit.running.pipeline_client import client_of
from tests.kit.running.redis_sentinel import SentinelGroup, sentinel_group

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

NUM_JOBS = 16
MAX_JOBS = 8
"""Of these are taken from the queue at a time; the others wait there with their pictures."""
QUESTIONS = crowd_questions(NUM_JOBS, 80)


@dataclass(frozen=True)
class Clustered:
    nats: NatsCluster
    redis: SentinelGroup
    drill: Drill


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clustered(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Clustered]:
    directory: Path = tmp_path_factory.mktemp("clusters")
    async with nats_cluster(directory / "nats") as nats, sentinel_group(directory / "redis") as redis:
        pipeline = fault_cluster(
            directory / "run", "3", nats_url=nats.url, nats_replicas=3, redis_url=redis.url,
            extra_arguments={"conductor": ("--max-jobs", str(MAX_JOBS))},
        )  # fmt: skip
        async with pipeline, client_of(pipeline) as client:
            yield Clustered(nats, redis, Drill(client, await undisturbed(client, QUESTIONS)))


async def finish(drill: Drill, crowd: Crowd, what: str, died_at: float, most_attempts: int) -> None:
    """Wait for the end of all, each of which has to be right, and say how long streams stood still."""
    assert await crowd.finish() == drill.expected
    records = await drill.client.records([each.job_id for each in crowd.followers])
    pauses = [
        each.longest_gap_s(died_at, each.token_times[-1])
        for each in crowd.followers
        if each.token_times[0] < died_at < each.token_times[-1]
    ]
    num_attempts = sorted(record.attempt for record in records)
    print(f"\n{what}: longest gap in a running stream {max(pauses):.2f} s, attempts {num_attempts}")
    assert num_attempts[-1] <= most_attempts
    await drill.client.wait_empty()


@pytest.mark.parametrize("is_leader", [True, False])
async def test_a_nats_server_of_three_is_killed(clustered: Clustered, is_leader: bool) -> None:
    drill, nats = clustered.drill, clustered.nats
    leader = await nats.leader_of(subjects.job_stream("bp"))
    victim = leader if is_leader else next(member for member in nats.members if member is not leader)
    async with decoding(drill.client, QUESTIONS, 10, at_once=MAX_JOBS // 2) as crowd:
        died_at = time.time()
        await victim.kill()
        await finish(drill, crowd, f"NATS server killed, leader: {is_leader}", died_at, 2)
    await victim.start()


async def test_the_redis_master_is_killed_and_sentinels_promote_a_replica(clustered: Clustered) -> None:
    drill = clustered.drill
    master = await clustered.redis.master()
    async with decoding(drill.client, QUESTIONS, 10, at_once=MAX_JOBS // 2) as crowd:
        died_at = time.time()
        await clustered.redis.sentinels[0].kill()  # the one that is asked first
        await master.kill()
        await finish(drill, crowd, "Redis master killed", died_at, 3)
    assert await clustered.redis.master_now() is not master


async def test_the_address_of_redis_moves_to_a_replica(tmp_path: Path) -> None:
    """As with a name or an address that a failover moves: connections to the old master stay open, and answer."""
    async with (
        EmbeddedRedis(tmp_path / "master") as master,
        EmbeddedRedis(tmp_path / "replica") as replica,
        moving_endpoint(master.url) as endpoint,
        open_redis(master.url) as of_master,
        open_redis(replica.url) as of_replica,
    ):
        await of_replica.replicaof(*address(master))
        cluster = fault_cluster(tmp_path / "run", "3", redis_url=endpoint.url)
        async with cluster, client_of(cluster) as client:
            drill = Drill(client, await undisturbed(client, QUESTIONS))
            async with decoding(client, QUESTIONS, 10, at_once=MAX_JOBS // 2) as crowd:
                moved_at = time.time()
                await of_replica.replicaof("NO", "ONE")
                endpoint.target = replica.url
                await of_master.replicaof(*address(replica))
                await finish(drill, crowd, "Redis's address moved", moved_at, 3)


def address(server: EmbeddedRedis) -> tuple[str, str]:
    parts = urlsplit(server.url)
    return str(parts.hostname), str(parts.port)
