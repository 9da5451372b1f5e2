"""What somebody else may do to what Redis and NATS hold: garbage, strange records, deleted streams and consumers.

Only such keys are garbled as have to be mended by themselves: what is garbled of a job is that job's end, and no proof.
"""

from __future__ import annotations

from broker_pipeline import redis_keys, subjects
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.wire.transport import Transport

_RANDOM = bytes(range(0x80, 0xC0)) + b"\x00%1%%s\n"
_GARBAGE = (b"", _RANDOM, b'[{"a": 1}]', b'{"instance":', b"1" + b"0" * 30)
_SHARED = (redis_keys.status, redis_keys.lease, redis_keys.epoch, redis_keys.workers)
_STRANGE_S = 20
_STRANGE = {
    "newer": b'{"worker":"newer","instance":"i-9","contract":99,"version":"99.0","blocks":"all"}',
    "garbled": _RANDOM,
    "stolen": b'{"worker":"stage-0","instance":"i-8","role":"stage","pipeline":"main","subject":"nobody.there"}',
    "silent": b'{"worker":"silent","instance":"i-7","role":"vision","pipeline":"main","subject":"nobody.there"}',
}


async def garble(cluster: LocalCluster, detail: float) -> None:
    """Put garbage where something that all share should stand: a string of some kind, or a list."""
    settings = cluster.settings
    namespace, pipeline = settings.namespace, settings.pipeline
    keys = [each(namespace, pipeline) for each in _SHARED]
    keys += [redis_keys.pipelines(namespace), redis_keys.probe(namespace)]
    keys += [redis_keys.worker(namespace, pipeline, f"stage-{index}") for index in range(len(settings.stages))]
    pairs = [(key, garbage) for key in keys for garbage in (*_GARBAGE, None)]
    key, garbage = pairs[int(detail * len(pairs))]
    async with open_redis(cluster.redis_url) as redis:
        await redis.delete(key)
        await (redis.rpush(key, _RANDOM) if garbage is None else redis.set(key, garbage))


async def register_strangers(cluster: LocalCluster) -> None:
    """Register workers that nobody can use: of a later release, garbled, under another's name, or never to be heard."""
    namespace, pipeline = cluster.settings.namespace, cluster.settings.pipeline
    async with open_redis(cluster.redis_url) as redis:
        for name, record in _STRANGE.items():
            await redis.set(redis_keys.worker(namespace, pipeline, name), record, ex=_STRANGE_S)
        await redis.sadd(redis_keys.workers(namespace, pipeline), *_STRANGE)


async def delete_consumer(cluster: LocalCluster) -> None:
    """Delete what conductors pull jobs from."""
    stream = subjects.job_stream(cluster.settings.namespace)
    async with Transport.open(cluster.nats_url, name="soak-deletes") as transport:
        jetstream = transport.jetstream()
        for consumer in await jetstream.consumers_info(stream):
            await jetstream.delete_consumer(stream, consumer.name)


async def delete_stream(cluster: LocalCluster) -> None:
    """Delete the queue, with all jobs in it."""
    async with Transport.open(cluster.nats_url, name="soak-deletes") as transport:
        await transport.jetstream().delete_stream(subjects.job_stream(cluster.settings.namespace))
