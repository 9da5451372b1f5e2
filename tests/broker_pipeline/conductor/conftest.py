"""The whole conductor for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.kit.acting.conductor_bench import Bench, open_bench


@pytest.fixture
async def bench(nats_url: str, redis_url: str, namespace: str) -> AsyncIterator[Bench]:
    async with open_bench(nats_url, redis_url, namespace) as opened:
        yield opened
