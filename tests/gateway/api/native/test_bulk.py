"""`/v1/jobs/bulk` and `/v1/jobs/wait` over real HTTP, NATS and Redis."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from broker_pipeline.state.redis_client import RedisClient
from gateway.settings import GatewaySettings
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import ActingConductor, acting_conductor


def job(content: bytes, number: int = 0, **more: Any) -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(content).decode()
    return {"images": [url], "prompt": f"What is it, {number}?", "idempotency_key": f"key-{number}", **more}


async def post(http: aiohttp.ClientSession, path: str, body: object, status: int = 200) -> dict[str, Any]:
    async with http.post(f"/v1/jobs/{path}", json=body) as answer:
        said = await answer.json()
        assert answer.status == status, said
        return dict(said)


async def submitted(http: aiohttp.ClientSession, *jobs: object) -> list[dict[str, Any]]:
    return list((await post(http, "bulk", {"jobs": jobs}))["jobs"])


async def test_each_job_is_accepted_or_refused_by_itself(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    wrong = [
        job(b"no picture", 1),
        job(jpeg, 2, sampling={"temperature": -1}),
        job(jpeg, 3, idempotency_key="a b"),
        {"images": ["https://127.0.0.1/a.jpg"]},
        [],
        {"promt": "?"},
    ]
    answers = await submitted(http, job(jpeg, 0), *wrong, {"prompt": "text alone"}, job(jpeg, 9))
    errors = [answer["error"] for answer in answers[1:-2]]
    assert [error["code"] for error in errors] == [
        *("not_an_image", "invalid_request", "invalid_request", "private_address", "invalid_request", "invalid_request")
    ]
    assert [error.get("field") for error in errors[:4]] == [
        *("images[0]", "sampling.temperature", "idempotency_key", "images[0]")
    ]
    assert not any(answer.get("retry_after_s") for answer in answers), "what is wrong stays wrong"
    accepted = [answers[0], *answers[-2:]]
    assert [answer["job"]["status"] for answer in accepted] == ["queued"] * 3
    assert {(await conductor.take()).spec.job_id for _ in accepted} == {answer["job"]["job_id"] for answer in accepted}


async def test_the_same_again_finds_the_first_ones(http: aiohttp.ClientSession, jpeg: bytes) -> None:
    jobs = [job(jpeg, number) for number in range(5)]
    first, again = await submitted(http, *jobs), await submitted(http, *jobs, job(jpeg, 0, prompt="Another?"))
    assert [answer["job"]["job_id"] for answer in first] == [answer["job"]["job_id"] for answer in again[:-1]]
    assert all(answer["is_repeat"] for answer in again[:-1])
    assert not any("is_repeat" in answer for answer in first)
    assert again[-1]["error"]["code"] == "idempotency_conflict"


async def test_a_full_queue_refuses_those_that_have_no_room(
    start_gateway: OpenGateway, settings: GatewaySettings, jpeg: bytes
) -> None:
    async with start_gateway(queue_max_jobs=3) as (_, url), aiohttp.ClientSession(base_url=url) as http:
        answers = await submitted(http, *(job(jpeg, number) for number in range(8)))
    refused = [answer for answer in answers if "error" in answer]
    assert len(refused) == 5
    assert {answer["error"]["code"] for answer in refused} == {"queue_full"}
    assert all(answer["retry_after_s"] > 0 for answer in refused)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("bulk", {"jobs": []}, "jobs"),
        ("bulk", {"jobs": [{"prompt": "?"}] * 1001}, "jobs"),
        ("bulk", {"job": []}, "job"),
        ("bulk", [], None),
        ("wait", {"job_ids": []}, "job_ids"),
        ("wait", {"job_ids": ["a/b"]}, "job_ids[0]"),
        ("wait", {"job_ids": ["a"], "wait_s": 61}, "wait_s"),
    ],
)
async def test_bodies_that_are_wrong_name_the_field(
    http: aiohttp.ClientSession, path: str, body: object, field: str | None
) -> None:
    error = (await post(http, path, body, status=400))["error"]
    assert (error["code"], error.get("field")) == ("invalid_request", field)


async def test_a_body_of_ids_is_small(http: aiohttp.ClientSession) -> None:
    ids = [f"{number:064}" for number in range(1000)]
    assert (await post(http, "wait", {"job_ids": ids, "wait_s": 0}))["unknown"] == ids
    assert (await post(http, "wait", {"job_ids": ids, "more": "x" * 100_000}, status=413))["error"]["code"] == (
        "body_too_large"
    )


async def test_ends_are_told_as_they_come(http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes) -> None:
    answers = await submitted(http, *(job(jpeg, number) for number in range(3)))
    job_ids = [answer["job"]["job_id"] for answer in answers]
    assert await post(http, "wait", {"job_ids": job_ids, "wait_s": 0}) == {"jobs": [], "unknown": []}
    waiting = asyncio.ensure_future(post(http, "wait", {"job_ids": job_ids}))
    delivery = await conductor.take()
    await conductor.run(delivery, lambda *_: "a cat")
    ended = await waiting
    assert [(each["job_id"], each["result"]["text"]) for each in ended["jobs"]] == [(delivery.spec.job_id, "a cat")]
    for _ in range(2):
        await conductor.run(await conductor.take(), lambda *_: "a cat")
    ended = await post(http, "wait", {"job_ids": [*job_ids, "never-was", job_ids[0]]})
    assert {each["job_id"] for each in ended["jobs"]} == set(job_ids)
    assert ended["unknown"] == ["never-was"]


async def test_references_are_passed_on_without_being_read(
    start_gateway: OpenGateway, settings: GatewaySettings, redis: RedisClient, tmp_path: Path, jpeg: bytes
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg)
    sha256 = hashlib.sha256(jpeg).hexdigest()
    common = msgspec.structs.replace(settings.common, media_roots=(str(tmp_path),))
    url = f"file://{tmp_path}/a.jpg#sha256={sha256}"
    gone = f"file://{tmp_path}/gone.jpg#sha256={sha256}&offset=3&length=5"
    async with start_gateway(common=common) as (gateway, at), aiohttp.ClientSession(base_url=at) as http:
        answers = await submitted(
            http, *({"images": [each], "idempotency_key": each[-40:]} for each in (url, gone, f"{url}0", url))
        )
        assert answers[2]["error"]["code"] == "media_fetch"
        assert answers[3]["job"]["job_id"] == answers[0]["job"]["job_id"]
        async with acting_conductor(gateway.transport, redis, settings.common.namespace) as conductor:
            specs = {(delivery := await conductor.take()).spec.media()[0].url: delivery.spec for _ in range(2)}
        (read,) = specs[f"file://{tmp_path}/a.jpg"].media()
        assert await gateway.media.get(read) == jpeg
        (unread,) = specs[f"file://{tmp_path}/gone.jpg"].media()
        assert (unread.offset, unread.num_bytes, unread.sha256) == (3, 5, sha256)
        assert [key async for key in redis.scan_iter(f"{settings.common.namespace}:media:*")] == []
