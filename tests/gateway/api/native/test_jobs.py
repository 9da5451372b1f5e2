"""`/v1/jobs` over real HTTP, NATS and Redis."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import aiohttp
import pytest

from broker_pipeline.errors import JobNotFoundError
from broker_pipeline.messages.jobs import DEFAULT_PROMPT, ImagePart, TextPart
from broker_pipeline.state.redis_client import RedisClient
from gateway.settings import Limits
from gateway.wiring import Gateway
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import ActingConductor
from tests.kit.running.gateway_process import until_metrics
from tests.kit.waiting import eventually


def form(jpeg: bytes, **fields: str) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("image", jpeg, filename="a.jpg")
    for name, text in fields.items():
        data.add_field(name, text)
    return data


def data_url(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


async def accepted(http: aiohttp.ClientSession, **request: Any) -> dict[str, Any]:
    async with http.post("/v1/jobs", **request) as answer:
        body = await answer.json()
        assert answer.status == 202, body
        assert answer.headers["Location"] == f"/v1/jobs/{body['job_id']}"
        return dict(body)


async def test_a_form_becomes_a_job_whose_result_is_shown(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg, prompt="What is it?", temperature="0", metadata='{"a": "b"}'))
    assert (job["status"], job["metadata"]) == ("queued", {"a": "b"})
    delivery = await conductor.take()
    spec = delivery.spec
    image, text = spec.messages[0].content
    assert isinstance(image, ImagePart)
    assert text == TextPart(text="What is it?")
    assert spec.sampling.temperature == 0.0
    assert await conductor.media.get(image.media) == jpeg
    await conductor.run(delivery, lambda *_: "a cat")
    async with http.get(f"/v1/jobs/{job['job_id']}") as answer:
        shown = await answer.json()
    assert (shown["status"], shown["result"]["text"], shown["result"]["usage"]["num_output_tokens"]) == (
        "succeeded",
        "a cat",
        2,
    )


async def test_several_images_keep_their_order_whether_files_or_urls(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    data = aiohttp.FormData(default_to_multipart=True)
    for number in range(3):
        data.add_field("image", jpeg + bytes([number]), filename="x")
    data.add_field("image", data_url(jpeg))
    data.add_field("request", json.dumps({"images": [data_url(jpeg + b"!")], "sampling": {"max_tokens": 5}}))
    await accepted(http, data=data)
    spec = (await conductor.take()).spec
    contents = [await conductor.media.get(ref) for ref in spec.media()]
    assert contents == [*(jpeg + bytes([number]) for number in range(3)), jpeg, jpeg + b"!"]
    assert spec.messages[0].content[-1] == TextPart(text=DEFAULT_PROMPT)
    assert spec.sampling.max_tokens == 5


async def test_json_and_conversations(http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes) -> None:
    await accepted(http, json={"prompt": "Hi", "images": [data_url(jpeg)], "sampling": {"stop": ["."]}})
    assert (await conductor.take()).spec.sampling.stop == (".",)
    parts = [{"type": "text", "text": "Look:"}, {"type": "image", "url": data_url(jpeg)}]
    await accepted(
        http, json={"messages": [{"role": "system", "content": "Terse."}, {"role": "user", "content": parts}]}
    )
    spec = (await conductor.take()).spec
    assert [message.role for message in spec.messages] == ["system", "user"]
    assert isinstance(spec.messages[1].content[1], ImagePart)


async def test_a_job_waits_with_the_priority_that_was_asked_for(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    await accepted(http, json={"prompt": "soon"})
    assert (await conductor.take()).spec.priority == "interactive"
    await accepted(http, json={"prompt": "some time", "priority": "batch"})
    assert (await conductor.take()).spec.priority == "batch"
    data = form(jpeg)
    data.add_field("priority", "batch")
    job = await accepted(http, data=data)
    assert (await conductor.take()).spec.priority == "batch"
    assert (await conductor.store.spec(job["job_id"])).priority == "batch", "so that it is queued again as it was"
    async with http.post("/v1/jobs", json={"prompt": "now", "priority": "urgent"}) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
        assert error["field"] == "priority"


async def test_an_idempotency_key_gives_the_same_job(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = await accepted(http, data=form(jpeg), headers=headers)
    async with http.post("/v1/jobs", data=form(jpeg), headers=headers) as answer:
        assert answer.status == 202
        assert answer.headers["Idempotent-Replayed"] == "true"
        assert (await answer.json())["job_id"] == first["job_id"]
    delivery = await conductor.take()
    assert await conductor.queue.pull(0.2) is None
    await conductor.run(delivery, lambda *_: "done")
    assert (await accepted(http, data=form(jpeg), headers=headers))["result"]["text"] == "done"


async def test_an_idempotency_key_belongs_to_one_request(http: aiohttp.ClientSession, jpeg: bytes) -> None:
    headers = {"Idempotency-Key": "k-2"}
    await accepted(http, data=form(jpeg), headers=headers)
    changes = ({"prompt": "Other"}, {"temperature": "1"}, {"max_pixels": "9"})
    for other in (form(jpeg + b"!"), *(form(jpeg, **change) for change in changes)):
        async with http.post("/v1/jobs", data=other, headers=headers) as answer:
            assert answer.status == 409
            assert (await answer.json())["error"]["code"] == "idempotency_conflict"


async def test_a_record_without_a_queued_job_is_queued_by_its_repeat(
    running: tuple[Gateway, str],
    http: aiohttp.ClientSession,
    conductor: ActingConductor,
    jpeg: bytes,
    redis: RedisClient,
) -> None:
    """A gateway that was killed between the two leaves just the record; its client asks again."""
    gateway, _ = running
    headers = {"Idempotency-Key": "k-3"}
    stream = f"{gateway.settings.common.namespace}-jobs"
    job = await accepted(http, data=form(jpeg), headers=headers)
    await gateway.transport.jetstream().purge_stream(stream)
    await gateway.transport.jetstream().delete_stream(stream)  # forgets what it would take for a duplicate
    await gateway.queue.ensure()
    assert (await accepted(http, data=form(jpeg), headers=headers))["job_id"] == job["job_id"]
    delivery = await conductor.take()
    assert delivery.spec.job_id == job["job_id"]
    await conductor.run(delivery, lambda *_: "after all")
    assert (await conductor.store.get(job["job_id"])).status == "succeeded"


async def test_a_full_queue_is_429_and_leaves_nothing(
    start_gateway: OpenGateway, jpeg: bytes, redis: RedisClient, namespace: str
) -> None:
    async with start_gateway(queue_max_jobs=2) as (gateway, url), aiohttp.ClientSession(base_url=url) as http:
        for _ in range(2):
            await accepted(http, data=form(jpeg))
        keys = await redis.dbsize()
        for _ in range(3):
            async with http.post("/v1/jobs", data=form(jpeg + b"other")) as answer:
                body = await answer.json()
                assert (answer.status, body["error"]["code"], body["error"]["retryable"]) == (429, "queue_full", True)
                assert int(answer.headers["Retry-After"]) >= 1
        async with http.get("/v1/jobs") as answer:
            assert len((await answer.json())["jobs"]) == 2
        assert (await gateway.store.counts()).queued == 2
        # of the refused picture nothing is referred to; the sweep removes its bytes
        references = [key async for key in redis.scan_iter(f"{namespace}:media:*:jobs")]
        assert len(references) == 1
        assert await redis.dbsize() <= keys + 3


async def test_waiting_for_the_end(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    async with http.get(f"/v1/jobs/{job['job_id']}?wait_s=0.2") as answer:
        assert (await answer.json())["status"] == "queued"

    async def wait() -> dict[str, Any]:
        async with http.get(f"/v1/jobs/{job['job_id']}?wait_s=30") as answer:
            return dict(await answer.json())

    waiting = asyncio.ensure_future(wait())
    await eventually(lambda: running[0].watch.num_open == 1)
    await conductor.run(await conductor.take(), lambda *_: "ready")
    async with asyncio.timeout(1.0):
        assert (await waiting)["result"]["text"] == "ready"


async def test_waiting_outlives_a_lost_message(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    waiting = asyncio.ensure_future(http.get(f"/v1/jobs/{job['job_id']}?wait_s=30"))
    await eventually(lambda: running[0].watch.num_open == 1)
    spec = (await conductor.take()).spec
    await conductor.finish(spec, await conductor.begin(spec), "silent", tells=False)
    async with asyncio.timeout(5.0):
        answer = await waiting
        assert (await answer.json())["result"]["text"] == "silent"


async def test_cancelling_a_queued_job_ends_it_now(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, redis: RedisClient, namespace: str
) -> None:
    job = await accepted(http, data=form(jpeg))
    async with http.delete(f"/v1/jobs/{job['job_id']}") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "cancelled")
    assert [key async for key in redis.scan_iter(f"{namespace}:media:*:jobs")] == []
    await conductor.run(await conductor.take(), lambda *_: pytest.fail("a cancelled job ran"))
    async with http.delete(f"/v1/jobs/{job['job_id']}") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "cancelled")


async def test_cancelling_a_running_job_asks_the_conductor(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    spec = (await conductor.take()).spec
    await conductor.begin(spec)
    async with http.delete(f"/v1/jobs/{job['job_id']}") as answer:
        assert (answer.status, (await answer.json())["status"]) == (202, "running")
    assert await conductor.store.cancelled([job["job_id"]])


async def test_jobs_are_listed_newest_first_in_pages(http: aiohttp.ClientSession, jpeg: bytes) -> None:
    ids = [(await accepted(http, data=form(jpeg)))["job_id"] for _ in range(5)]
    seen: list[str] = []
    query: dict[str, str] = {"limit": "2"}
    while True:
        async with http.get("/v1/jobs", params=query) as answer:
            page = await answer.json()
        assert len(page["jobs"]) <= 2
        seen += [job["job_id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]
    assert seen == ids[::-1]
    await (await http.delete(f"/v1/jobs/{ids[0]}")).read()
    async with http.get("/v1/jobs", params={"status": "cancelled"}) as answer:
        assert [job["job_id"] for job in (await answer.json())["jobs"]] == [ids[0]]


@pytest.mark.parametrize("job_id", ["nope", "a" * 65, "@", "..", "%00", "%2e%2e", "a%b"])
async def test_unknown_jobs(http: aiohttp.ClientSession, job_id: str) -> None:
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "?wait_s=1")]:
        async with http.request(method, f"/v1/jobs/{job_id}{path}") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] in {"job_not_found", "not_found", "method_not_allowed"}


async def test_any_replica_answers_for_any_job(start_gateway: OpenGateway, jpeg: bytes) -> None:
    async with start_gateway() as (_, one), start_gateway() as (_, two):
        async with aiohttp.ClientSession(base_url=one) as http:
            job = await accepted(http, data=form(jpeg), headers={"Idempotency-Key": "k"})
        async with aiohttp.ClientSession(base_url=two) as http:
            assert (await accepted(http, data=form(jpeg), headers={"Idempotency-Key": "k"})) == job
            async with http.get(f"/v1/jobs/{job['job_id']}") as answer:
                assert await answer.json() == job


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    running: tuple[Gateway, str], redis: RedisClient, namespace: str, jpeg: bytes
) -> None:
    _, url = running
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=B\r\n\r\n"
        '--B\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    )
    writer.write(head.encode() + jpeg)
    await writer.drain()
    await until_metrics(url, uploads_in_flight=1)
    writer.transport.abort()
    await until_metrics(url, uploads_in_flight=0)
    assert [key async for key in redis.scan_iter(f"{namespace}:*")] == []


async def test_bodies_in_memory_are_bounded(
    start_gateway: OpenGateway, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one body drips in, another waits for its turn and is sent away."""
    monkeypatch.setattr("gateway.intake.request_reader._WAIT_FOR_ROOM_S", 0.2)

    async def drip() -> Any:
        yield b'{"prompt": "'
        await released.wait()
        yield b'x"}'

    released = asyncio.Event()
    started = start_gateway(limits=Limits(max_uploads=1))
    async with started as (_, url), aiohttp.ClientSession(base_url=url) as http:
        headers = {"Content-Type": "application/json"}
        first = asyncio.ensure_future(http.post("/v1/jobs", data=drip(), headers=headers))
        await until_metrics(url, uploads_in_flight=1)
        async with http.post("/v1/jobs", data=form(jpeg)) as answer:
            assert (answer.status, "Retry-After" in answer.headers) == (429, True)
        released.set()
        assert (await first).status == 202
        await accepted(http, data=form(jpeg))


async def test_a_body_that_does_not_arrive_gives_its_place_back(start_gateway: OpenGateway, jpeg: bytes) -> None:
    async def never() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    started = start_gateway(limits=Limits(max_uploads=1, upload_timeout_s=0.2))
    async with started as (_, url), aiohttp.ClientSession(base_url=url) as http:
        headers = {"Content-Type": "application/json"}
        async with http.post("/v1/jobs", data=never(), headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (408, "body_too_slow")
        await accepted(http, data=form(jpeg))


async def test_a_failed_publish_leaves_no_job(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, jpeg: bytes, redis: RedisClient, namespace: str
) -> None:
    gateway, _ = running
    jetstream, stream = gateway.transport.jetstream(), f"{namespace}-jobs"
    await jetstream.update_stream((await jetstream.stream_info(stream)).config, sealed=True)  # takes nothing any more
    async with http.post("/v1/jobs", data=form(jpeg), headers={"Idempotency-Key": "k"}) as answer:
        body = await answer.json()
        assert (answer.status, body["error"]["retryable"]) == (503, True)
        assert "Retry-After" in answer.headers
    assert (await gateway.store.list()).records == []
    assert [key async for key in redis.scan_iter(f"{namespace}:media:*:jobs")] == []
    await jetstream.delete_stream(stream)
    job = await accepted(http, data=form(jpeg), headers={"Idempotency-Key": "k"})
    assert (await gateway.store.get(job["job_id"])).status == "queued"
    with pytest.raises(JobNotFoundError):
        await gateway.store.get("other")
