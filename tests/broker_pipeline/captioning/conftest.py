"""A gateway to caption through, and a conductor behind it, acted by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from tests.kit.running.captioner import Captioner, CaptioningConductor
from tests.kit.running.gateway_process import gateway_here


@pytest_asyncio.fixture
async def captioner(tmp_path: Path, nats_url: str, redis_url: str, namespace: str) -> AsyncIterator[Captioner]:
    async with gateway_here(nats_url, redis_url, namespace) as url:
        yield Captioner(tmp_path, url)


@pytest_asyncio.fixture
async def conductor(
    captioner: Captioner, transport: Transport, redis: RedisClient, namespace: str
) -> AsyncIterator[CaptioningConductor]:
    async with CaptioningConductor.working(transport, redis, namespace) as conductor:
        yield conductor
