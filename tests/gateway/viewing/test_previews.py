"""What a job was asked, over real HTTP, NATS and Redis: while its picture is there, and after."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import aiohttp
import msgspec
import pytest
from PIL import Image

from broker_pipeline import redis_keys
from broker_pipeline.errors import Failure
from broker_pipeline.messages.gateway import JobPreview
from broker_pipeline.state.redis_client import RedisClient
from gateway.viewing import previews
from tests.gateway.access.test_tenants import Three, three  # noqa: F401
from tests.gateway.api.native.test_jobs import accepted, form
from tests.kit.acting.conductor import ActingConductor

GONE = "The picture was let go when the job ended."


async def preview(http: aiohttp.ClientSession, job_id: str) -> JobPreview:
    async with http.get(f"/v1/jobs/{job_id}/preview") as answer:
        assert answer.status == 200, await answer.text()
        return msgspec.json.decode(await answer.read(), type=JobPreview)


def opened(shown: JobPreview) -> Image.Image:
    assert shown.thumbnail is not None
    head, _, content = shown.thumbnail.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(BytesIO(base64.b64decode(content)))


async def test_a_job_that_waits_shows_its_picture_and_its_question(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg, prompt="What is <b>this</b>?"))
    shown = await preview(http, job["job_id"])
    assert (shown.prompt, shown.num_images, shown.num_videos, shown.why_none) == ("What is <b>this</b>?", 1, 0, None)
    assert opened(shown).size == (64, 48)


async def test_what_somebody_looked_at_is_there_after_the_end_and_the_rest_is_not(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, redis: RedisClient, namespace: str
) -> None:  # fmt: skip
    seen, unseen = [await accepted(http, data=form(jpeg + bytes([number]), prompt="p")) for number in range(2)]
    await preview(http, seen["job_id"])
    for _ in range(2):
        await conductor.run(await conductor.take(), lambda *_: "a cat")
    await conductor.media.sweep(grace_s=0.0)
    assert opened(await preview(http, seen["job_id"])).size == (64, 48)
    gone = await preview(http, unseen["job_id"])
    assert (gone.prompt, gone.thumbnail, gone.why_none) == ("p", None, GONE)
    (key,) = [key async for key in redis.scan_iter(match=redis_keys.thumbnail(namespace, "*"))]
    assert 0 < await redis.ttl(key) <= 24 * 3600


async def test_a_failed_job_keeps_its_picture(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes
) -> None:
    job = await accepted(http, data=form(jpeg))
    await conductor.run(await conductor.take(), lambda *_: Failure("compute", "no", retryable=False))
    await conductor.media.sweep(grace_s=0.0)
    assert opened(await preview(http, job["job_id"])).size == (64, 48)


async def test_only_so_many_are_kept(
    http: aiohttp.ClientSession, conductor: ActingConductor, jpeg: bytes, redis: RedisClient, namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(previews, "NUM_KEPT", 2)
    for number in range(4):
        job = await accepted(http, data=form(jpeg + bytes([number])))
        opened(await preview(http, job["job_id"]))
    assert len([key async for key in redis.scan_iter(match=redis_keys.thumbnail(namespace, "*"))]) == 2
    assert await redis.zcard(redis_keys.thumbnails(namespace)) == 2


async def test_text_alone_has_no_picture_and_no_excuse(http: aiohttp.ClientSession) -> None:
    job = await accepted(http, json={"prompt": "x" * 5000})
    shown = await preview(http, job["job_id"])
    assert shown == JobPreview(prompt="x" * 2000, num_images=0, num_videos=0)


async def test_a_picture_that_few_programs_read_says_why_it_is_not_shown(http: aiohttp.ClientSession) -> None:
    buffer = BytesIO()
    Image.new("L", (40, 40)).save(buffer, "TIFF")
    job = await accepted(http, data=form(buffer.getvalue()))
    shown = await preview(http, job["job_id"])
    assert shown.thumbnail is None
    assert shown.why_none is not None
    assert "TIFF" in shown.why_none


async def test_anothers_picture_is_not_there(three: Three, jpeg: bytes) -> None:  # noqa: F811
    submitted: dict[str, Any] = {}
    status, submitted = await three.alice.ask("POST", "/v1/jobs", data=form(jpeg))
    assert status == 202
    path = f"/v1/jobs/{submitted['job_id']}/preview"
    assert [(await who.ask("GET", path))[0] for who in (three.alice, three.bob, three.operator)] == [200, 404, 200]


@pytest.mark.parametrize("job_id", ["unknown", "a%2Fb"])
async def test_unknown_jobs(http: aiohttp.ClientSession, job_id: str) -> None:
    async with http.get(f"/v1/jobs/{job_id}/preview") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "job_not_found")
