"""The life of a batch, as OpenAI's client sees it, over a conductor that answers what it is asked."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest
from openai import AsyncOpenAI, BadRequestError, ConflictError, NotFoundError

from broker_pipeline.errors import Failure
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from gateway.settings import FetchSettings
from gateway.wiring import Gateway
from tests.gateway.api.openai.test_unusable_media import BROKEN, asked
from tests.gateway.batches.conftest import Carrying, answers, echo, ended, errors, line, rows, start_batch, upload
from tests.kit.acting.conductor import ActingConductor, acting_conductor, prompt_of
from tests.kit.waiting import eventually


async def test_every_request_is_answered_once(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor, jpeg: bytes
) -> None:
    url = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    picture = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "line\u2028separator"}]
    lines = [line(f"r{index}") for index in range(30)] + [
        line("picture", messages=[{"role": "user", "content": picture}])
    ]
    async with conductor.running(echo):
        batch = await start_batch(client, lines, metadata={"album": "holiday"})
        assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"album": "holiday"})
        assert batch.expires_at is not None
        assert batch.expires_at - batch.created_at == 24 * 3600
        done = await ended(client, batch)
    assert (done.status, done.model, done.error_file_id) == ("completed", "demo", None)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 31, "completed": 31, "failed": 0}
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.total_tokens) == (20 * 31, 20 * 31 + done.usage.output_tokens)
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert times == sorted(times, key=lambda at: at or 0)
    told = await answers(client, done)
    assert told == {f"r{index}": f"I heard r{index}" for index in range(30)} | {
        "picture": "I heard line\u2028separator"
    }
    page = await carrying.store.list()
    assert page.records == [], "the jobs of a batch are forgotten once their answers are kept"
    await carrying.media.sweep(0.0)
    assert await carrying.media.size_bytes() == 0


async def test_pictures_that_the_gateway_finds_in_its_directory(
    start_carrying: Carrying, transport: Transport, redis: RedisClient, namespace: str, jpeg: bytes, tmp_path: Path
) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.jpg").write_bytes(jpeg)
    (tmp_path / "secret.jpg").write_bytes(jpeg)

    def about(name: str) -> str:
        picture = {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/{name}"}}
        return line(name, messages=[{"role": "user", "content": [picture]}])

    settings = FetchSettings(media_dir=str(tmp_path / "media"))
    async with (
        start_carrying(fetch=settings) as (_, client),
        acting_conductor(transport, redis, namespace) as conductor,
        conductor.running(lambda _, media: str(media == [jpeg])),
    ):
        done = await ended(client, await start_batch(client, [about("media/a.jpg"), about("secret.jpg")]))
        assert await answers(client, done) == {"media/a.jpg": "True"}
        refused = (await errors(client, done))["secret.jpg"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["code"]) == (400, "media_fetch")
    assert refused["body"]["error"]["param"] == "messages[0].content[0].image_url.url"


async def test_requests_for_responses(client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor) -> None:
    lines = [
        json.dumps({"custom_id": name, "method": "POST", "url": "/v1/responses", "body": {"model": "demo"} | body})
        for name, body in {"a": {"input": "hello"}, "b": {"input": "x", "previous_response_id": "resp_1"}}.items()
    ]
    async with conductor.running(echo):
        done = await ended(client, await start_batch(client, lines, endpoint="/v1/responses"))
    (row,) = await rows(client, done.output_file_id)
    body = row["response"]["body"]
    assert (row["custom_id"], body["object"], body["status"]) == ("a", "response", "completed")
    assert body["output"][0]["content"][0]["text"] == "I heard hello"
    refused = (await errors(client, done))["b"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["param"]) == (400, "previous_response_id")


async def test_requests_that_fail_stand_in_the_error_file(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor
) -> None:
    lines = [
        line("good"),
        line("fails", "please fail"),
        line("hot", temperature=7),
        line(
            "broken", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]
        ),
        line("silent", messages=[]),
    ]

    def caption(spec: object, media: list[bytes]) -> str | Failure:
        return Failure("compute", "it burst") if "fail" in prompt_of(spec) else "fine"  # type: ignore[arg-type]

    async with conductor.running(caption):
        done = await ended(client, await start_batch(client, lines))
    assert done.status == "completed"
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 5, "completed": 1, "failed": 4}
    assert await answers(client, done) == {"good": "fine"}
    told = await errors(client, done)
    assert {name: row["response"]["status_code"] for name, row in told.items()} == {
        "fails": 500,
        "hot": 400,
        "broken": 400,
        "silent": 400,
    }
    assert told["hot"]["response"]["body"]["error"]["param"] == "temperature"
    assert told["fails"]["response"]["body"]["error"]["message"] == "it burst"


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses"])
async def test_pictures_and_videos_that_are_none_are_told_as_an_answer_would(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor, endpoint: str
) -> None:
    lines, fields = [], {}
    for name, url in BROKEN.items():
        for index, (path, body, field) in enumerate(asked(url)):
            if path == endpoint:
                custom_id = f"{name} {index}"
                lines.append(json.dumps({"custom_id": custom_id, "method": "POST", "url": path, "body": body}))
                fields[custom_id] = field
    done = await ended(client, await start_batch(client, lines, endpoint=endpoint))
    told = {name: row["response"] for name, row in (await errors(client, done)).items()}
    assert {row["status_code"] for row in told.values()} == {400}
    assert {name: row["body"]["error"]["param"] for name, row in told.items()} == fields


async def test_a_cancelled_batch_keeps_what_is_done(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor
) -> None:
    batch = await start_batch(client, [line(f"r{index}") for index in range(20)])
    deliveries = [await conductor.take() for _ in range(8)]
    for delivery in deliveries[:5]:
        await conductor.run(delivery, echo)

    async def five_are_done() -> bool:
        counts = (await client.batches.retrieve(batch.id)).request_counts
        return counts is not None and counts.completed == 5

    await eventually(five_are_done)
    assert {delivery.spec.priority for delivery in deliveries} == {"batch"}
    attempt = await conductor.begin(deliveries[5].spec)  # it runs when the batch is cancelled
    cancelling = await client.batches.cancel(batch.id)
    assert cancelling.status in {"cancelling", "cancelled"}
    done = await ended(client, batch)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    assert done.cancelling_at is not None
    kept, lost = await answers(client, done), await errors(client, done)
    assert sorted([*kept, *lost]) == sorted(f"r{index}" for index in range(20))
    assert len(kept) == 5
    assert all((row["response"], row["error"]["code"]) == (None, "batch_cancelled") for row in lost.values())
    assert await conductor.store.cancelled([deliveries[5].spec.job_id]), "the running job was told to stop"
    assert attempt
    with pytest.raises(ConflictError):
        await client.batches.cancel((await _completed(client, conductor)).id)


async def _completed(client: AsyncOpenAI, conductor: ActingConductor):  # type: ignore[no-untyped-def]
    async with conductor.running(echo):
        return await ended(client, await start_batch(client, [line("only")]))


async def test_what_is_not_done_in_time_expires(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor
) -> None:
    batch = await start_batch(client, [line(f"r{index}") for index in range(6)], completion_window="3s")
    for _ in range(2):
        await conductor.run(await conductor.take(), echo)
    done = await ended(client, batch)
    assert done.status == "expired"
    assert done.expired_at is not None
    kept, lost = await answers(client, done), await errors(client, done)
    assert (len(kept), len(lost)) == (2, 4)
    assert {row["error"]["code"] for row in lost.values()} == {"batch_expired"}


async def test_pause_and_resume(client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor) -> None:
    batch = await start_batch(client, [line("a"), line("b")], extra_body={"priority": 5})
    assert batch.model_extra is not None
    assert (batch.model_extra["paused"], batch.model_extra["priority"]) == (False, 5)
    taken = [await conductor.take(), await conductor.take()]  # a pause may come between the two
    paused = await client.post(f"/batches/{batch.id}/pause", cast_to=type(batch))
    assert (paused.status, (paused.model_extra or {})["paused"]) in {("in_progress", True), ("validating", True)}
    for delivery in taken:
        await conductor.run(delivery, echo)
    held = [await carrying.batches.due(10)]
    assert held == [[]]
    assert (await client.batches.retrieve(batch.id)).status == "in_progress"
    await client.post(f"/batches/{batch.id}/resume", cast_to=type(batch))
    done = await ended(client, batch)
    assert (done.status, await answers(client, done)) == ("completed", {"a": "I heard a", "b": "I heard b"})


async def test_the_same_order_is_one_batch(client: AsyncOpenAI, running: tuple[Gateway, str]) -> None:
    file_id = await upload(client, [line("a")])
    order = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    first, again = [await client.batches.create(**order, metadata={"a": "1"}) for _ in range(2)]  # type: ignore[arg-type]
    assert again.id == first.id
    other = await client.batches.create(**order, metadata={"a": "2"})  # type: ignore[arg-type]
    assert other.id != first.id
    named = {"Idempotency-Key": "mine"}
    third, fourth = [await client.batches.create(**order, extra_headers=named) for _ in range(2)]  # type: ignore[arg-type]
    assert (third.id == fourth.id, third.id in {first.id, other.id}) == (True, False)
    with pytest.raises(ConflictError):
        await client.batches.create(**order, metadata={"b": "1"}, extra_headers=named)  # type: ignore[arg-type]
    await client.batches.cancel(first.id)
    assert await running[0].batches.due(10)


async def test_pages_of_batches(client: AsyncOpenAI, running: tuple[Gateway, str]) -> None:
    made = [(await start_batch(client, [line("a")], metadata={"n": str(index)})).id for index in range(5)]
    listed = [batch.id async for batch in client.batches.list(limit=2)]
    assert listed == made[::-1]
    page = await client.batches.list(limit=2, after=made[1])
    assert ([batch.id for batch in page.data], page.has_more) == ([made[0]], False)
    with pytest.raises(BadRequestError):
        await client.batches.list(after="batch_unknown")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"input_file_id": "file-unknown"}, "input_file_id"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"extra_body": {"urgent": True}}, "urgent"),
    ],
)
async def test_orders_that_are_refused(client: AsyncOpenAI, changes: dict[str, object], param: str) -> None:
    order = {
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "input_file_id": await upload(client, "{}"),
    }
    with pytest.raises(BadRequestError) as refused:
        await client.batches.create(**(order | changes))  # type: ignore[arg-type]
    assert refused.value.param == param
    assert [batch async for batch in client.batches.list()] == []


async def test_unknown_batches(client: AsyncOpenAI) -> None:
    for ask in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(NotFoundError):
            await ask("batch_unknown")


async def test_an_input_that_is_wrong_is_refused_line_by_line(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor
) -> None:
    await conductor.show_model("demo", "0" * 64)
    lines = [
        line("fine"),
        "not json",
        line("fine"),
        line("other", model="else"),
        line("stream", stream=True),
        line("url").replace("/v1/chat", "/v1/legacy"),
        line("get").replace("POST", "GET"),
        '{"custom_id": 5}',
        '{"custom_id": "nothing else"}',
        line("no model", model=None),
        "[]",
    ]
    done = await ended(client, await start_batch(client, lines))
    assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
    assert done.failed_at is not None
    assert done.errors is not None
    told = [(error.line, error.code, error.param) for error in done.errors.data or ()]
    assert told == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "mismatched_model", "body.model"),
        (5, "invalid_request", "body.stream"),
        (6, "invalid_url", "url"),
        (7, "invalid_request", "method"),
        (8, "invalid_request", "custom_id"),
        (9, "invalid_request", "method"),
        (10, "invalid_request", "body.model"),
        (11, "invalid_request", None),
    ]
    assert (await carrying.queue.depth()).num_waiting == 0, "nothing is accepted half"


async def test_a_job_that_is_lost_is_made_again(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor
) -> None:
    batch = await start_batch(client, [line("a")])
    lost = await conductor.take()
    await carrying.store.discard(lost.spec.job_id)
    await lost.ack()
    async with conductor.running(echo):
        done = await ended(client, batch)
    assert await answers(client, done) == {"a": "I heard a"}


async def test_estimates_when_it_will_be_done(
    client: AsyncOpenAI, carrying: Gateway, conductor: ActingConductor
) -> None:
    batch = await start_batch(client, [line(f"r{index}") for index in range(3)])
    assert (batch.model_extra or {})["estimated_completed_at"] is None
    await conductor.run(await conductor.take(), echo)

    async def is_estimated() -> bool:
        shown = await client.batches.retrieve(batch.id)
        return ((shown.model_extra or {})["estimated_completed_at"] or 0) >= time.time()

    await eventually(is_estimated)
