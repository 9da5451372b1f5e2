"""The weights of tenants, as keys come, go and cannot be read."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from structlog.testing import capture_logs

from broker_pipeline import redis_keys
from broker_pipeline.conductor.jobs.tenant_weights import TenantWeights
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient
from tests.kit.waiting import eventually


def key(tenant: str, weight: float) -> GatewayKey:
    return GatewayKey(tenant=tenant, scopes=("submit",), created_at=1.0, weight=weight)


async def test_the_most_of_a_tenants_keys_counts_and_what_was_last_known_holds(
    redis: RedisClient, namespace: str
) -> None:
    keys = GatewayKeys(redis, namespace)
    weights = TenantWeights(keys, every_s=0.02)
    looking = asyncio.create_task(weights.run())
    try:
        assert weights.of("alice") == 1.0
        await keys.create(key("alice", 2.0))
        await keys.create(key("alice", 5.0))
        await eventually(lambda: weights.of("alice") == 5.0)
        with capture_logs() as logs:
            await redis.hset(redis_keys.gateway_keys(namespace), "broken", b"\xff{")
            await eventually(lambda: [each["event"] for each in logs] == ["weights_unknown"])
        assert weights.of("alice") == 5.0
        await redis.hdel(redis_keys.gateway_keys(namespace), "broken")
        await keys.revoke("alice")
        await eventually(lambda: weights.of("alice") == 1.0)
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
