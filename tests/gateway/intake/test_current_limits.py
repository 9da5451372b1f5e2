"""The gateway accepts what vision workers decode, and asks Redis who they are now and then, not each time."""

from __future__ import annotations

import json

import aiohttp
import msgspec
import pytest

from broker_pipeline import redis_keys, subjects
from broker_pipeline.errors import StateError
from broker_pipeline.messages.status import ConductorStatus, SessionLimits
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.pictures.rule import PictureRule
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.tools.local.servers import EmbeddedRedis
from gateway.intake.current_limits import ABSENT_S, FRESH_S, CurrentLimits
from gateway.settings import Limits
from tests.broker_pipeline.pictures.test_header import png_claiming
from tests.gateway.api.test_status_and_health import conductor_status, show
from tests.kit.acting.conductor import NOTHING_RUNS

OWN = Limits(max_images=3, pictures=PictureRule(max_pixels=10_000))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def vision(namespace: str, name: str, pictures: PictureRule | None) -> WorkerRecord:
    root = subjects.worker_root(namespace, "main", "vision", name, "i1")
    return WorkerRecord(worker=name, instance="i1", role="vision", pipeline="main", subject=root, pictures=pictures)


async def test_the_strictest_of_all_who_may_get_the_job_counts(redis: RedisClient, namespace: str) -> None:
    registry = WorkerRegistry(redis, namespace, "main")
    own = await CurrentLimits(OWN, registry).get()
    assert own == OWN
    small, large = PictureRule(max_pixels=400), PictureRule(max_pixels=20_000, max_bytes=500)
    for record in (vision(namespace, "v0", small), vision(namespace, "v1", large), vision(namespace, "v2", None)):
        await registry.register(record)
    stricter = PictureRule(max_pixels=400, max_bytes=500)
    assert await CurrentLimits(OWN, registry).get() == msgspec.structs.replace(OWN, pictures=stricter)


async def test_a_draining_worker_gets_no_job_and_has_no_say(redis: RedisClient, namespace: str) -> None:
    registry = WorkerRegistry(redis, namespace, "main")
    record = vision(namespace, "v0", PictureRule(max_pixels=1))
    await registry.register(msgspec.structs.replace(record, state="draining"))
    assert await CurrentLimits(OWN, registry).get() == OWN


async def test_who_is_there_is_asked_now_and_then(redis: RedisClient, namespace: str) -> None:
    registry, clock = WorkerRegistry(redis, namespace, "main"), Clock()
    limits = CurrentLimits(OWN, registry, clock)
    assert await limits.get() == OWN
    status = ConductorStatus(**NOTHING_RUNS, model="some", fingerprint="f" * 64)
    await redis.set(redis_keys.status(namespace, "main"), msgspec.json.encode(status))
    clock.now += ABSENT_S - 0.1
    assert (await limits.get()).model is None
    clock.now += 0.1
    assert (await limits.get()).model == "some", "a conductor that was not found is looked for again soon"
    await registry.register(vision(namespace, "v0", PictureRule(max_pixels=400)))
    clock.now += FRESH_S - 0.1
    assert (await limits.get()).pictures == OWN.pictures
    clock.now += 0.1
    assert (await limits.get()).pictures.max_pixels == 400


async def test_an_outage_of_redis_is_said(own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_redis(own_redis.url, timeout_s=0.5) as redis:
        limits = CurrentLimits(OWN, WorkerRegistry(redis, namespace, "main"))
        own_redis.kill()
        with pytest.raises(StateError):
            await limits.get()


async def test_a_submission_that_no_worker_would_decode_is_refused(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str
) -> None:
    rule = PictureRule(max_pixels=1000, formats=("PNG",), max_frames=1)
    await WorkerRegistry(redis, namespace, "main").register(vision(namespace, "v0", rule))
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("image", png_claiming(40, 30), filename="x.png", content_type="image/png")
    async with http.post("/v1/jobs", data=data) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["field"]) == (422, "image_too_large", "image[0]")
    video = {"type": "video", "frames": ["data:,x", "data:,x"]}
    async with http.post("/v1/jobs", json={"messages": [{"role": "user", "content": [video]}]}) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["field"]) == (
        422,
        "image_too_large",
        "messages[0].content[0].frames[0]",
    )


LONG = {"prompt": "What is this?", "sampling": {"max_tokens": 400}}


def session_limits(max_tokens_in_all: int) -> SessionLimits:
    return SessionLimits(
        max_tokens_in_all=max_tokens_in_all,
        max_position_embeddings=1000,
        default_max_tokens=9,
        default_max_tokens_reasoning=9,
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (None, "sampling.max_tokens"),
        ({"prompt": "x", "max_tokens": "400"}, "max_tokens"),
        ({"request": json.dumps(LONG)}, "request.sampling.max_tokens"),
    ],
    ids=["JSON", "form", "request in a form"],
)
async def test_an_output_that_fits_behind_no_prompt_is_refused_where_that_is_known(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str, fields: dict[str, str] | None, field: str
) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    for name, text in (fields or {}).items():
        form.add_field(name, text)
    await show(redis, namespace, conductor_status(limits=session_limits(400)))
    async with http.post("/v1/jobs", data=form) if fields else http.post("/v1/jobs", json=LONG) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["field"]) == (400, "prompt_too_long", field)
    assert "at most 400" in error["message"]


@pytest.mark.parametrize("name", ["stop_token_ids", "logit_bias"])
async def test_a_token_that_the_model_does_not_have_is_refused_where_that_is_known(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str, name: str
) -> None:
    value = [1, 100] if name == "stop_token_ids" else {"1": 1.0, "100": 1.0}
    form = aiohttp.FormData(default_to_multipart=True)
    for text in ["1", "100"] if name == "stop_token_ids" else [json.dumps(value)]:
        form.add_field(name, text)
    form.add_field("prompt", "What?")
    as_json = {"prompt": "What?", "sampling": {name: value}}
    await show(redis, namespace, conductor_status(vocab_size=100))
    for request, field in (({"json": as_json}, f"sampling.{name}"), ({"data": form}, name)):
        async with http.post("/v1/jobs", **request) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["field"]) == (400, "invalid_request", field)
        assert error["message"] == "the model has no token 100; its tokens are 0 to 99"


async def test_any_token_is_taken_where_nobody_says_which_there_are(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/jobs", json={"prompt": "What?", "sampling": {"stop_token_ids": [10**6]}}) as answer:
        assert answer.status == 202


@pytest.mark.parametrize("limits", [None, session_limits(401)], ids=["unknown", "just fits"])
async def test_an_output_that_may_fit_is_accepted(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str, limits: SessionLimits | None
) -> None:
    await show(redis, namespace, conductor_status(limits=limits))
    async with http.post("/v1/jobs", json=LONG) as answer:
        assert answer.status == 202


async def test_a_text_that_the_stages_have_no_room_for_is_refused_where_its_bytes_show_that(
    http: aiohttp.ClientSession, redis: RedisClient, namespace: str
) -> None:
    known = msgspec.structs.replace(session_limits(400), longest_token_bytes=10)
    await show(redis, namespace, conductor_status(limits=known))
    job = {"prompt": "y" * 3900, "sampling": {"max_tokens": 10}}
    async with http.post("/v1/jobs", json=job) as answer:
        assert answer.status == 202, "390 tokens may be enough"
    async with http.post("/v1/jobs", json={**job, "prompt": "y" * 3910}) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["field"]) == (400, "prompt_too_long", "prompt")
    assert "at least 391 tokens" in error["message"]
