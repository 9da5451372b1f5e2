"""Lines whose pictures are on a server that is down, and comes back."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from structlog.testing import capture_logs

from broker_pipeline.errors import MediaFetchError
from broker_pipeline.messages.sampling import MODEL_DEFAULTS
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from gateway.address_guard import AddressGuard
from gateway.batches.picture_retries import PictureRetries
from gateway.intake.down_hosts import DownHosts
from gateway.intake.fetch import ByteBudget, ImageFetcher
from gateway.intake.job_draft import JobDraft, Link
from gateway.settings import FetchSettings
from tests.gateway.batches.conftest import Carrying, answers, ended, errors, line, start_batch
from tests.gateway.batches.test_line_room import LOCAL, serving, submit
from tests.kit.acting.conductor import acting_conductor

NUM_LINES = 100
NUM_ASKING = 16
WAITS_S = (0.1, 0.2, 0.4)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.batches.picture_retries._WAITS_S", WAITS_S)


@contextmanager
def hanging(num_taken: int) -> Iterator[int]:
    """A port at which nobody says anything: Linux takes so many connections, and answers no more of them."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(num_taken)
        for _ in range(0 if num_taken else 2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def draft_of(url: str) -> JobDraft:
    return JobDraft((), (Link("images[0]", url),), MODEL_DEFAULTS, {}, {})


def about(name: str, url: str) -> str:
    return line(name, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])


async def test_lines_of_a_host_that_is_down_do_not_each_wait_for_it_and_are_answered_once_it_is_back(
    start_carrying: Carrying,
    transport: Transport,
    redis: RedisClient,
    namespace: str,
    jpeg: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.wiring.DownHosts", partial(DownHosts, after_s=0.6))
    async with (
        start_carrying(fetch=LOCAL) as (gateway, client),
        acting_conductor(transport, redis, namespace) as conductor,
        conductor.running(lambda _, media: str(len(media))),
    ):
        async with serving(jpeg, 10) as pictures:
            up = pictures.url
        down = [about(f"down-{index}", f"{up}/{index}") for index in range(NUM_LINES)]
        async with serving(jpeg, 10) as others:
            well = [about(f"well-{index}", f"{others.url}/{index}") for index in range(NUM_LINES)]
            with capture_logs() as logged:
                done = await ended(client, await start_batch(client, [*down, *well]))
        assert await answers(client, done) == {f"well-{index}": "1" for index in range(NUM_LINES)}
        told = [row["response"] for row in (await errors(client, done)).values()]
        assert len(told) == NUM_LINES
        assert {(row["status_code"], row["body"]["error"]["code"]) for row in told} == {(400, "media_fetch")}
        assert {row["body"]["error"]["param"] for row in told} == {"messages[0].content[0].image_url.url"}
        num_waits = sum(entry["event"] == "batch_picture_asked_again" for entry in logged)
        assert 0 < num_waits <= NUM_ASKING * len(WAITS_S), "only those that found out waited"
        assert await submit(client, f"{up}/1") == 422
        async with serving(jpeg, 10, port=int(up.rpartition(":")[2])):
            done = await ended(client, await start_batch(client, down))
            assert await answers(client, done) == {f"down-{index}": "1" for index in range(NUM_LINES)}
        assert len(gateway.down_hosts) == 0


@pytest.mark.parametrize(
    ("num_taken", "reason", "lasting_s"),
    [(0, "cannot be fetched from: no connection in time", 0.5), (100, "did not deliver within 1 s", 1.0)],
    ids=["no connection", "no answer"],
)
async def test_lines_wait_for_one_probe_of_a_host_that_is_down(num_taken: int, reason: str, lasting_s: float) -> None:
    hosts = DownHosts(after_s=0.0)
    guard = AddressGuard((ipaddress.ip_network("127.0.0.1/32"),))
    fetcher = ImageFetcher(guard, FetchSettings(timeout_s=1.0), hosts)
    retries = PictureRetries(hosts)
    num_fetches = 0
    with hanging(num_taken) as port:
        url = f"http://127.0.0.1:{port}/a"

        async def fetch() -> bytes:
            nonlocal num_fetches
            num_fetches += 1
            return await fetcher.fetch(url, ByteBudget(100), max_bytes=100, name="images[0]")

        async def failure() -> str:
            with pytest.raises(MediaFetchError) as caught:
                await retries.get(draft_of(url), fetch, "line")
            assert (caught.value.field, caught.value.retryable) == ("images[0]", True)
            return caught.value.message

        said = await failure()
        assert (said, num_fetches) == (f"127.0.0.1 {reason}", 1)
        assert await failure() == said
        assert num_fetches == 1, "it was tried just before"
        await asyncio.sleep(lasting_s + 0.05)  # as long as the try took
        assert set(await asyncio.gather(*(failure() for _ in range(20)))) == {said}
        assert num_fetches == 2


async def test_a_probe_that_is_cancelled_leaves_its_place_to_another() -> None:
    hosts = DownHosts(after_s=0.0)
    retries = PictureRetries(hosts, clock := lambda: asyncio.get_running_loop().time())
    hosts.failed("gone:80", "gone", clock() - 1, clock() - 1)
    began = asyncio.Event()

    async def hang() -> str:
        began.set()
        return await asyncio.Future()

    async def answer() -> str:
        return "picture"

    probe = asyncio.create_task(retries.get(draft_of("http://gone/a"), hang, "first"))
    await began.wait()
    waiting = asyncio.create_task(retries.get(draft_of("http://gone/b"), answer, "second"))
    other = await retries.get(draft_of("http://there/c"), answer, "third")
    assert (other, waiting.done()) == ("picture", False)
    probe.cancel()
    assert await waiting == "picture"
