"""A job's life as server-sent events, over real HTTP, NATS and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import aiohttp
import msgspec
import pytest

from broker_pipeline import subjects
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.tools.local.servers import EmbeddedRedis
from broker_pipeline.wire.transport import Transport
from gateway.settings import GatewaySettings, Limits
from gateway.wiring import Gateway
from tests.gateway.api.native.test_jobs import accepted, form
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import ActingConductor, acting_conductor
from tests.kit.waiting import eventually


@dataclass(frozen=True)
class Sent:
    """One server-sent event as it came over the wire."""

    kind: str
    id: int | str
    event: JobEvent


class Reader:
    """Reads a stream the way a browser does."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.comments: list[str] = []

    async def events(self) -> AsyncIterator[Sent]:
        fields: dict[str, str] = {}
        async for raw in self.answer.content:
            line = raw.decode().rstrip("\n")
            if line.startswith(":"):
                self.comments.append(line[1:].strip())
            elif line:
                name, _, text = line.partition(": ")
                fields[name] = text
            elif "data" in fields:
                event = msgspec.json.decode(fields["data"], type=JobEvent)
                event_id = fields["id"]
                yield Sent(fields["event"], int(event_id) if event_id.isdigit() else event_id, event)
                fields = {}

    async def rest(self) -> list[Sent]:
        return [sent async for sent in self.events()]


def words(sent: list[Sent]) -> str:
    return "".join(token.text for each in sent for token in each.event.tokens)


def stream(http: aiohttp.ClientSession, job: dict[str, Any], last_event_id: int | str | None = None) -> Any:
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    return http.get(f"/v1/jobs/{job['job_id']}/events", headers=headers)


async def test_a_whole_life(http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes) -> None:
    job = await accepted(http, data=form(jpeg))
    async with stream(http, job) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert "X-Request-Id" in answer.headers
        events = Reader(answer).events()
        first = await anext(events)
        assert (first.kind, first.id, first.event.record and first.event.record.status) == ("queued", 0, "queued")
        spec = (await conductor.take()).spec
        attempt = await conductor.begin(spec)
        assert (await anext(events)).kind == "started"
        await conductor.commit(spec.job_id, attempt, 0, ["a ", "b "])
        tokens = await anext(events)
        assert (tokens.kind, tokens.id, words([tokens])) == ("tokens", 2, "a b ")
        await conductor.commit(spec.job_id, attempt, 2, ["c"])
        assert (await anext(events)).id == 3
        await conductor.finish(spec, attempt, "a b c")
        last = await anext(events)
        assert (last.kind, last.id) == ("finished", 3)
        assert last.event.record is not None
        assert last.event.record.result is not None
        assert last.event.record.result.text == "a b c"
        assert [sent async for sent in events] == []


async def test_a_stream_asks_for_its_job_again_and_again_and_a_poll_for_none(
    http: aiohttp.ClientSession, conductor: ActingConductor, transport: Transport, namespace: str, jpeg: bytes
) -> None:
    streamed, polled = await accepted(http, data=form(jpeg)), await accepted(http, data=form(jpeg))
    async with transport.subscribe(subjects.watch(namespace), WatchRequest) as requests, asyncio.timeout(9.0):
        async with http.get(f"/v1/jobs/{polled['job_id']}?wait_s=0.1"):
            pass
        async with stream(http, streamed):
            asked = [(await anext(requests)).body for _ in range(2)]
        async with stream(http, polled):
            while polled["job_id"] not in asked[-1].job_ids:
                asked.append((await anext(requests)).body)
    assert [request.job_ids for request in asked[:2]] == [(streamed["job_id"],)] * 2
    assert asked[-1].job_ids == (polled["job_id"],), "the first stream has ended"
    assert all(request.for_s > 5.0 and not request.is_for_all for request in asked)
    assert conductor is not None


async def test_an_id_beyond_the_last_token_begins_again(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    await conductor.run(await conductor.take(), lambda *_: "one two three")
    async with stream(http, job) as answer:
        whole = await Reader(answer).rest()
    async with stream(http, job, whole[-1].id) as answer:
        assert [each.kind for each in await Reader(answer).rest()] == ["started", "finished"]
    async with stream(http, job, 1000) as answer:
        again = await Reader(answer).rest()
    assert [each.kind for each in again] == ["restarted", "started", "tokens", "finished"]
    assert words(again) == words(whole)


async def test_a_finished_job_is_replayed(http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes) -> None:
    job = await accepted(http, data=form(jpeg))
    await conductor.run(await conductor.take(), lambda *_: "one two three")
    async with stream(http, job) as answer:
        sent = await Reader(answer).rest()
    assert [each.kind for each in sent] == ["queued", "started", "tokens", "finished"]
    assert words(sent) == "one two three "


@pytest.mark.parametrize("seen", [0, 1, 3])
async def test_resuming_after_the_last_event_seen(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, seen: int
) -> None:
    job = await accepted(http, data=form(jpeg))
    await conductor.run(await conductor.take(), lambda *_: "one two three")
    async with stream(http, job, seen) as answer:
        sent = await Reader(answer).rest()
    assert words(sent) == "".join(["one ", "two ", "three "][seen:])
    assert "queued" not in [each.kind for each in sent]
    assert (sent[-1].kind, sent[-1].id) == ("finished", 3)


@pytest.mark.parametrize("tells", [True, False])
async def test_a_job_that_begins_again_takes_back_what_was_shown(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, tells: bool
) -> None:
    """Whether or not its events arrive; a client that comes back says by its id which attempt its tokens are of."""
    job = await accepted(http, data=form(jpeg))
    spec = (await conductor.take()).spec
    async with stream(http, job) as answer, asyncio.timeout(8.0):
        events = Reader(answer).events()
        await conductor.commit(spec.job_id, await conductor.begin(spec), 0, ["a ", "b ", "c "])
        shown = [await anext(events) for _ in range(3)]
        assert (shown[-1].id, words(shown)) == (3, "a b c ")
        attempt = await conductor.begin(spec, "f" * 64)
        await conductor.commit(spec.job_id, attempt, 0, ["x ", "y "], tells=tells)
        restarted, tokens = await anext(events), await anext(events)
        assert (restarted.kind, restarted.id, restarted.event.first_attempt) == ("restarted", "0.2", 2)
        assert (tokens.kind, tokens.id, words([tokens])) == ("tokens", "2.2", "x y ")
        await conductor.commit(spec.job_id, attempt, 2, ["z "], tells=tells)
        await conductor.finish(spec, attempt, "x y z")
        assert words([sent async for sent in events]) == "z "
    for seen, expected in ((3, "x y z "), ("0.2", "x y z "), ("2.2", "z "), ("2.7", "x y z ")):
        async with stream(http, job, seen) as answer:
            sent = await Reader(answer).rest()
        assert words(sent) == expected
        assert [each.kind for each in sent].count("restarted") == (seen in {3, "2.7"})
        assert sent[-1].id == "3.2"


async def test_lost_and_repeated_messages_leave_no_trace(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    spec = (await conductor.take()).spec
    attempt = await conductor.begin(spec)
    expected = [f"{number} " for number in range(60)]
    async with stream(http, job) as answer:
        reading = asyncio.ensure_future(Reader(answer).rest())
        for start in range(0, 60, 2):
            await conductor.commit(job["job_id"], attempt, start, expected[start : start + 2], tells=start % 6 != 2)
            if start % 10 == 0:
                entries = await conductor.store.tokens(job["job_id"])
                await conductor.say(JobEvent(job_id=job["job_id"], kind="tokens", index=0, tokens=tuple(entries)))
        await conductor.finish(spec, attempt, "done")
        sent = await reading
    assert words(sent) == "".join(expected)
    for before, after in pairwise(sent):
        assert after.event.index == before.id


async def test_an_end_that_nobody_told_of_is_found(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    spec = (await conductor.take()).spec
    async with stream(http, job) as answer:
        reading = asyncio.ensure_future(Reader(answer).rest())
        attempt = await conductor.begin(spec)
        await conductor.commit(job["job_id"], attempt, 0, ["x"], tells=False)
        await conductor.finish(spec, attempt, "x", tells=False)
        async with asyncio.timeout(6.0):
            assert [each.kind for each in await reading][-1] == "finished"


async def test_an_end_that_was_lost_with_a_connection_is_found_as_it_comes_back(
    start_gateway: OpenGateway,
    transport: Transport,
    redis: RedisClient,
    namespace: str,
    jpeg: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("watch", "end_watch"):
        monkeypatch.setattr(f"gateway.jobs.{module}._LOOK_S", 600.0)
    async with (
        start_gateway() as (gateway, url),
        aiohttp.ClientSession(base_url=url) as http,
        acting_conductor(transport, redis, namespace) as conductor,
    ):
        job = await accepted(http, data=form(jpeg))
        spec = (await conductor.take()).spec
        async with stream(http, job) as answer, asyncio.TaskGroup() as group, asyncio.timeout(10.0):
            reading = group.create_task(Reader(answer).rest())
            polling = group.create_task(fetched(http, f"/v1/jobs/{job['job_id']}?wait_s=60"))
            attempt = await conductor.begin(spec)
            await conductor.commit(job["job_id"], attempt, 0, ["x"])
            await conductor.finish(spec, attempt, "x", tells=False)
            link = gateway.transport.link.small.socket._link
            assert link is not None
            link.transport.abort()
        assert reading.result()[-1].kind == "finished"
        assert polling.result()["status"] == "succeeded"


async def fetched(http: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with http.get(path) as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def test_many_clients_of_one_job_see_the_same(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))

    async def follow(delay_s: float) -> str:
        await asyncio.sleep(delay_s)
        async with stream(http, job) as answer:
            return words(await Reader(answer).rest())

    following = [asyncio.ensure_future(follow(number * 0.02)) for number in range(20)]
    spec = (await conductor.take()).spec
    attempt = await conductor.begin(spec)
    for number in range(40):
        await conductor.commit(job["job_id"], attempt, number, [f"{number},"])
        await asyncio.sleep(0.01)
    await conductor.finish(spec, attempt, "end")
    assert set(await asyncio.gather(*following)) == {"".join(f"{number}," for number in range(40))}


async def test_a_job_cancelled_in_the_queue_ends_its_stream(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    async with stream(http, job) as answer:
        events = Reader(answer).events()
        assert (await anext(events)).kind == "queued"
        async with http.delete(f"/v1/jobs/{job['job_id']}"):
            pass
        async with asyncio.timeout(1.0):
            last = await anext(events)
        assert last.event.record is not None
        assert (last.kind, last.event.record.status) == ("finished", "cancelled")


async def test_quiet_streams_are_kept_alive(
    http: aiohttp.ClientSession, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.api.event_stream.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("gateway.jobs.watch._LOOK_S", 0.05)
    job = await accepted(http, data=form(jpeg))
    async with stream(http, job) as answer:
        reader = Reader(answer)
        reading = asyncio.ensure_future(reader.rest())
        await eventually(lambda: reader.comments.count("idle") >= 2)
        reading.cancel()


async def test_a_client_that_leaves_gives_its_place_back(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, jpeg: bytes, conductor: ActingConductor
) -> None:
    gateway, _ = running
    job = await accepted(http, data=form(jpeg))
    async with stream(http, job) as answer:
        await anext(Reader(answer).events())
        assert gateway.watch.num_open == 1
    spec = (await conductor.take()).spec
    attempt = await conductor.begin(spec)
    for number in range(20):  # the loss of a client is seen when something is sent to it
        await conductor.commit(job["job_id"], attempt, number, ["x"])
        await asyncio.sleep(0.02)
    await eventually(lambda: gateway.watch.num_open == 0)


async def test_open_streams_are_bounded(start_gateway: OpenGateway, jpeg: bytes) -> None:
    started = start_gateway(limits=Limits(max_streams=1))
    async with started as (_, url), aiohttp.ClientSession(base_url=url) as http:
        job = await accepted(http, data=form(jpeg))
        async with stream(http, job) as answer:
            await anext(Reader(answer).events())
            for path in ("/events", "?wait_s=5"):
                async with http.get(f"/v1/jobs/{job['job_id']}{path}") as refused:
                    assert (refused.status, int(refused.headers["Retry-After"])) == (429, 5)


async def test_a_gateway_that_stops_says_goodbye(start_gateway: OpenGateway, jpeg: bytes) -> None:
    async with start_gateway() as (gateway, url), aiohttp.ClientSession(base_url=url) as http:
        job = await accepted(http, data=form(jpeg))
        async with stream(http, job) as answer:
            reader = Reader(answer)
            reading = asyncio.ensure_future(reader.rest())
            waiting = asyncio.ensure_future(http.get(f"/v1/jobs/{job['job_id']}?wait_s=60"))
            await eventually(lambda: gateway.watch.num_open == 2)
            gateway.stopping.set()
            async with asyncio.timeout(2.0):
                assert [each.kind for each in await reading] == ["queued"]
                assert (await (await waiting).json())["status"] == "queued"
        assert reader.comments == ["the gateway is stopping; reconnect"]


@pytest.mark.parametrize("last", ["x", "-1", "1.", "1.0", ".5", "1.5.2", "9" * 5000, "1." + "9" * 5000, "٣"])
async def test_ids_that_no_event_has(http: aiohttp.ClientSession, jpeg: bytes, last: str) -> None:
    job = await accepted(http, data=form(jpeg))
    async with http.get(f"/v1/jobs/{job['job_id']}/events", headers={"Last-Event-ID": last}) as answer:
        assert (answer.status, (await answer.json())["error"]["field"]) == (400, "Last-Event-ID")


async def test_a_lost_redis_ends_the_stream_and_a_returned_one_resumes_it(
    start_gateway: OpenGateway, settings: GatewaySettings, own_redis: EmbeddedRedis, jpeg: bytes, transport: Any
) -> None:
    common = msgspec.structs.replace(settings.common, redis_url=own_redis.url)
    started = start_gateway(common=common)
    async with started as (gateway, url), aiohttp.ClientSession(base_url=url) as http:
        conductor = ActingConductor(transport, gateway.redis, common.namespace)
        job = await accepted(http, data=form(jpeg))
        async with conductor.queue:
            spec = (await conductor.take()).spec
        attempt = await conductor.begin(spec)
        await conductor.commit(job["job_id"], attempt, 0, ["a ", "b "])
        async with stream(http, job) as answer:
            reader = Reader(answer)
            reading = asyncio.ensure_future(reader.rest())
            await eventually(lambda: b"broker_pipeline_streamed_tokens_total 2.0" in gateway.metrics.text())
            await own_redis.stop()
            async with asyncio.timeout(15.0):
                seen = await reading
        assert words(seen) == "a b "
        assert reader.comments == ["state; reconnect"]
        async with stream(http, job, seen[-1].id) as answer:
            assert answer.status == 503
        await own_redis.start()
        async with stream(http, job, seen[-1].id) as answer:
            reading = asyncio.ensure_future(Reader(answer).rest())
            await conductor.commit(job["job_id"], attempt, 2, ["c"])
            await conductor.finish(spec, attempt, "a b c")
            assert words(await reading) == "c"
