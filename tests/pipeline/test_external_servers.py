"""Servers that broker-pipeline did not start: Debian's nats-server and redis-server, with their own defaults."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.wire.transport import Transport
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.debian_servers import debians_nats, debians_redis, needs_debians_servers
from tests.kit.running.pipeline_client import PROMPT, client_of

pytestmark = [pytest.mark.slow, needs_debians_servers]


async def test_jobs_run_through_debians_servers_which_are_left_alone(tmp_path: Path) -> None:
    async with debians_nats(tmp_path) as nats_url, debians_redis(tmp_path) as redis_url:
        cluster = tiny_cluster(tmp_path / "run", DENSE, "1,3", nats_url=nats_url, redis_url=redis_url)
        async with cluster, client_of(cluster) as client:
            assert not {"nats", "redis"} & set(cluster.processes)
            pictures = [picture(seed) for seed in range(4)]
            tokens = await client.run(await asyncio.gather(*(client.submit(each, max_tokens=8) for each in pictures)))
            assert tokens == [reference_tokens(DENSE, (each,), PROMPT, 8) for each in pictures]
        async with Transport.open(nats_url, name="test"), open_redis(redis_url) as redis:
            assert await redis.ping()
