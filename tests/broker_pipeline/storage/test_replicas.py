"""How many servers of a NATS cluster keep the streams."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_pipeline import subjects
from broker_pipeline.errors import ConfigurationError
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.storage.media_objects import NUM_STREAMS
from broker_pipeline.wire.transport import Transport
from tests.kit.running.nats_cluster import nats_cluster


async def test_a_server_alone_keeps_one_replica_and_says_by_which_flag_it_was_asked_for_more(
    transport: Transport, namespace: str
) -> None:
    with pytest.raises(ConfigurationError, match="--nats-replicas"):
        await JobQueue(transport, namespace, num_replicas=3).ensure()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_streams_of_a_cluster_get_the_replicas_that_are_asked_for_also_later(
    tmp_path: Path, redis: RedisClient, namespace: str
) -> None:
    async with nats_cluster(tmp_path / "nats") as cluster, Transport.open(cluster.url, name="test") as transport:
        jetstream = transport.jetstream()
        for num_replicas in (1, 3):
            await JobQueue(transport, namespace, max_bytes=2**20, num_replicas=num_replicas).ensure()
            await MediaStore(transport, redis, namespace, 2**24, num_replicas=num_replicas).ensure()
            media = [subjects.media_stream(namespace, shard) for shard in range(NUM_STREAMS)]
            for name in (subjects.job_stream(namespace), *media):
                assert (await jetstream.stream_info(name)).config.num_replicas == num_replicas
