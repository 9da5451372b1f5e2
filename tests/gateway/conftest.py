"""A gateway in this process, over real servers, and a client that talks HTTP to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from nats.js.errors import NotFoundError
from PIL import Image

from broker_pipeline import subjects
from broker_pipeline.config import CommonSettings
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.media_objects import NUM_STREAMS
from broker_pipeline.wire.transport import Transport
from gateway.app import serving
from gateway.settings import MIB, AccessSettings, GatewaySettings
from gateway.wiring import Gateway, open_gateway
from tests.kit.acting.conductor import ActingConductor, acting_conductor

OpenGateway = Callable[..., AbstractAsyncContextManager[tuple[Gateway, str]]]


OPERATOR_TOKEN = "an operator's token of some length"


@pytest.fixture
def access(tmp_path: Path) -> AccessSettings:
    """A gateway whose operator has `OPERATOR_TOKEN`."""
    (tmp_path / "operator.token").write_text(OPERATOR_TOKEN)
    return AccessSettings(operator_token_file=str(tmp_path / "operator.token"))


@pytest.fixture
def settings(nats_url: str, redis_url: str, namespace: str, access: AccessSettings) -> GatewaySettings:
    """Settings of a gateway on a random port."""
    common = CommonSettings(nats_url=nats_url, redis_url=redis_url, namespace=namespace, drain_s=5.0)
    return GatewaySettings(
        common=common,
        port=0,
        queue_max_bytes=8 * MIB,
        media_max_bytes=64 * MIB,
        files_max_bytes=64 * MIB,
        access=access,
    )


@pytest_asyncio.fixture
async def start_gateway(settings: GatewaySettings, transport: Transport, namespace: str) -> AsyncIterator[OpenGateway]:
    """Starts a gateway whose settings differ from the usual ones where the test says so."""

    @asynccontextmanager
    async def start(**changes: object) -> AsyncIterator[tuple[Gateway, str]]:
        stopping = asyncio.Event()
        changed = msgspec.structs.replace(settings, **changes)
        async with open_gateway(changed, stopping) as gateway, serving(gateway) as url:
            try:
                yield gateway, url
            finally:
                stopping.set()

    yield start
    media = (subjects.media_stream(namespace, shard) for shard in range(NUM_STREAMS))
    for stream in (subjects.job_stream(namespace), subjects.file_stream(namespace), *media):
        with suppress(NotFoundError):  # the room that JetStream holds for it is another test's now
            await transport.jetstream().delete_stream(stream)


@pytest_asyncio.fixture
async def running(start_gateway: OpenGateway) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway with the usual settings."""
    async with start_gateway() as started:
        yield started


@pytest_asyncio.fixture
async def http(running: tuple[Gateway, str]) -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose paths lead to the running gateway."""
    async with aiohttp.ClientSession(base_url=running[1]) as session:
        yield session


@pytest_asyncio.fixture
async def conductor(
    running: tuple[Gateway, str], transport: Transport, redis: RedisClient, namespace: str
) -> AsyncIterator[ActingConductor]:
    """Somebody who runs the gateway's jobs."""
    async with acting_conductor(transport, redis, namespace) as acting:
        yield acting


@pytest.fixture(scope="session")
def jpeg() -> bytes:
    """A small picture."""
    buffer = BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()
