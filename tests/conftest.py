"""Real servers for every test that needs them: one of each per session, a namespace per test."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of tiny models, several threads wait for each other more than they do
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # containers set it: each of a thousand processes compiled all anew
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton, which reads it once

import nats
import pytest
import pytest_asyncio
import structlog

from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.wire.transport import Transport
from tests.kit.machine_lock import machine


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let nothing run beside a test that is about time; that it waits for this counts for no timeout."""
    with machine(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_configure() -> None:
    """Have Ctrl-C work where it is ignored, as in what a shell has in the background: tests' children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none; try what fails twice more, and list it in the report.

    A shared machine stands still now and then, and is never faster than it is: a bound that is kept once in three
    times can be kept. And of thousands of tests of real processes under load, one that meets a moment that nobody
    thought of must not hide what all others say. What is wrong fails each time.
    """
    for item in items:
        item.add_marker(pytest.mark.flaky(reruns=2))
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Commands that a test runs in this process set up logging for all of it."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whoever runs the tests keeps no notes of their artifacts."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def nats_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A nats-server with JetStream that the whole session shares."""
    async with EmbeddedNats(tmp_path_factory.mktemp("nats")) as server:
        yield server.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def redis_url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A Redis that the whole session shares."""
    async with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest_asyncio.fixture
async def namespace(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Keeps tests that share servers out of each other's way.

    Streams are deleted after the test: a stream reserves all the room that it may ever need.
    """
    name = f"t{uuid.uuid4().hex[:12]}"
    yield name
    if "nats_url" in request.fixturenames:
        await _delete_streams(request.getfixturevalue("nats_url"), name)


async def _delete_streams(url: str, namespace: str) -> None:
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        for stream in await jetstream.streams_info():
            if (name := stream.config.name or "").startswith(namespace):
                await jetstream.delete_stream(name)
    finally:
        await client.close()


@pytest_asyncio.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A nats-server that the test may kill."""
    async with EmbeddedNats(tmp_path / "nats") as server:
        yield server


@pytest_asyncio.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """A Redis that the test may kill."""
    async with EmbeddedRedis(tmp_path / "redis") as server:
        yield server


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[RedisClient]:
    """A client of the shared Redis."""
    async with open_redis(redis_url) as client:
        yield client


@pytest_asyncio.fixture
async def transport(nats_url: str) -> AsyncIterator[Transport]:
    """A transport to the shared nats-server."""
    async with Transport.open(nats_url, name="test") as opened:
        yield opened
