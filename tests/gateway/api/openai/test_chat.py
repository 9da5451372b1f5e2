"""Chat completions over real HTTP, NATS and Redis, answered by tokens that a test makes up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobResult, JobSpec, TokenEntry, Usage
from gateway.settings import Limits
from gateway.wiring import Gateway
from tests.gateway.conftest import OpenGateway
from tests.kit.acting.conductor import ActingConductor
from tests.kit.waiting import eventually

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HI, **fields}


@asynccontextmanager
async def begun(http: aiohttp.ClientSession, conductor: ActingConductor, **fields: Any) -> AsyncIterator[Any]:
    """Ask, and have the conductor begin: the asking task, the job, its attempt."""
    asking = asyncio.ensure_future(http.post(URL, json=body(**fields)))
    try:
        spec = (await conductor.take()).spec
        yield asking, spec, await conductor.begin(spec)
    finally:
        asking.cancel()


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield line[6:].strip().decode() if b"[DONE]" in line else json.loads(line[6:])


async def text_until(stream: AsyncIterator[Any], text: str) -> None:
    """Read a stream until its deltas have added up to a text."""
    said = ""
    while said != text:
        said += (await anext(stream))["choices"][0]["delta"].get("content", "")


@asynccontextmanager
async def streaming(http: aiohttp.ClientSession, conductor: ActingConductor) -> AsyncIterator[Any]:
    """Ask for a stream, and have "a" told: the stream from there on, the job, its attempt."""
    async with begun(http, conductor, stream=True) as (asking, spec, attempt):
        await conductor.commit(spec.job_id, attempt, 0, ["a"])
        async with await asking as answer:
            stream = events(answer)
            await text_until(stream, "a")
            yield stream, spec, attempt


def thought(reasoning: str, text: str) -> JobResult:
    usage = Usage(num_prompt_tokens=20, num_visual_tokens=0, num_output_tokens=2, num_reasoning_tokens=1)
    return JobResult(text=text, reasoning=reasoning, finish_reason="stop", usage=usage, model="m")


@pytest.mark.parametrize(("tier", "priority"), [("flex", "batch"), ("auto", "interactive"), (None, "interactive")])
async def test_the_tier_for_what_may_wait_is_batch_priority(
    http: aiohttp.ClientSession, conductor: ActingConductor, tier: str | None, priority: str
) -> None:
    async with begun(http, conductor, service_tier=tier) as (_, spec, _):
        assert spec.priority == priority


async def test_reasoning_by_both_its_names(http: aiohttp.ClientSession, conductor: ActingConductor) -> None:
    tokens = [TokenEntry(token_id=1, reasoning="hm"), TokenEntry(token_id=2, text="Yes")]
    async with begun(http, conductor) as (asking, spec, attempt):
        await conductor.commit_entries(spec.job_id, attempt, 0, tokens)
        await conductor.finish(spec, attempt, thought("hm", "Yes"))
        async with await asking as answer:
            said = await answer.json()
    message = said["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Yes", "hm", "hm")
    assert said["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}
    assert answer.headers["X-Request-Id"]


async def test_a_stream_from_the_first_token_to_the_usage(
    http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with begun(http, conductor, stream=True, stream_options=options) as (asking, spec, attempt):
        first = TokenEntry(token_id=1, reasoning="hm", num_prompt_tokens=20)
        await conductor.commit_entries(spec.job_id, attempt, 0, [first])
        async with await asking as answer:
            stream = events(answer)
            role, reasoning = await anext(stream), await anext(stream)
            assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert role["usage"] == {"prompt_tokens": 20, "completion_tokens": 0, "total_tokens": 20}
            assert reasoning["choices"][0]["delta"] == {"reasoning": "hm", "reasoning_content": "hm"}
            assert reasoning["usage"] == {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
            await conductor.commit(spec.job_id, attempt, 1, ["Yes"])
            assert (await anext(stream))["choices"][0]["delta"] == {"content": "Yes"}
            await conductor.finish(spec, attempt, thought("hm", "Yes"))
            end, usage, done = [each async for each in stream]
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 22, "[DONE]")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_stops_its_job(
    http: aiohttp.ClientSession, conductor: ActingConductor, stream: bool
) -> None:
    async with begun(http, conductor, stream=stream) as (asking, spec, attempt):
        await conductor.commit(spec.job_id, attempt, 0, ["a"])
        if stream:
            answer = await asking
            await text_until(events(answer), "a")
            answer.close()
        asking.cancel()
        await eventually(lambda: is_cancelled(conductor, spec), timeout_s=5.0)


async def is_cancelled(conductor: ActingConductor, spec: JobSpec) -> bool:
    return await conductor.store.cancelled([spec.job_id]) == [spec.job_id]


async def test_a_client_with_a_key_comes_back_for_its_job(
    http: aiohttp.ClientSession, conductor: ActingConductor, running: tuple[Gateway, str]
) -> None:
    headers = {"Idempotency-Key": "k"}
    asking = asyncio.ensure_future(http.post(URL, json=body(), headers=headers))
    spec = (await conductor.take()).spec
    attempt = await conductor.begin(spec)
    asking.cancel()
    await eventually(lambda: running[0].watch.num_open == 0)
    assert not await is_cancelled(conductor, spec)
    again = asyncio.ensure_future(http.post(URL, json=body(), headers=headers))
    await conductor.finish(spec, attempt, "a b")
    async with await again as answer:
        assert (await answer.json())["choices"][0]["message"]["content"] == "a b"


FAILURES = [
    (Failure("prompt_too_long", "too long", "messages"), 400, "context_length_exceeded", "messages"),
    (Failure("nothing_left", "nothing left"), 400, "nothing_left", None),
    (Failure("not_an_image", "bad", "messages[0].content[1]"), 400, "not_an_image", "messages[0].content[1]"),
    (Failure("invalid_request", "bad", "sampling.logit_bias"), 400, "invalid_request", "logit_bias"),
    (Failure("retries_exhausted", "again and again"), 500, "retries_exhausted", None),
    (Failure("worker_lost", "gone", retryable=True), 503, "worker_lost", None),
]


@pytest.mark.parametrize(("failure", "status", "code", "param"), FAILURES)
async def test_a_job_that_fails_before_its_first_token_is_an_error_by_its_status(
    http: aiohttp.ClientSession, conductor: ActingConductor, failure: Failure, status: int, code: str, param: str | None
) -> None:
    for stream in (False, True):
        async with begun(http, conductor, stream=stream) as (asking, spec, attempt):
            await conductor.finish(spec, attempt, failure)
            async with await asking as answer:
                error = (await answer.json())["error"]
        kind = "server_error" if status >= 500 else "invalid_request_error"
        assert answer.status == status
        assert error == {"message": failure.message, "type": kind, "param": param, "code": code}


async def test_metrics_tell_the_gateways_own_share_from_that_of_its_stores(
    http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    async with streaming(http, conductor) as (stream, spec, attempt):
        await conductor.commit(spec.job_id, attempt, 1, ["b"])
        await conductor.finish(spec, attempt, thought("", "ab"))
        assert [each async for each in stream][-1] == "[DONE]"
    async with http.get("/metrics") as answer:
        families = {family.name: family for family in text_string_to_metric_families(await answer.text())}
    parts = {
        (sample.labels.get("part"), sample.name.rpartition("_")[2]): sample.value
        for name in ("submission_seconds", "event_seconds")
        for sample in families[f"broker_pipeline_{name}"].samples
    }
    assert (parts["read", "count"], parts["store", "count"]) == (1, 1)
    assert parts[None, "count"] >= 1
    assert all(0 < parts[part, "sum"] < 5 for part in ("read", "store", None))


async def test_a_job_that_fails_later_is_an_event_and_the_end(
    http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    async with streaming(http, conductor) as (stream, spec, attempt):
        await conductor.finish(spec, attempt, Failure("worker_lost", "gone", retryable=True))
        assert [each async for each in stream] == [
            {"error": {"message": "gone", "type": "server_error", "param": None, "code": "worker_lost"}},
            "[DONE]",
        ]


async def test_a_cancelled_job_is_no_answer(http: aiohttp.ClientSession, conductor: ActingConductor) -> None:
    async with begun(http, conductor) as (asking, spec, attempt):
        async with http.delete(f"/v1/jobs/{spec.job_id}"):
            pass
        usage = Usage(num_prompt_tokens=1, num_visual_tokens=0, num_output_tokens=1)
        await conductor.finish(spec, attempt, JobResult(text="a", finish_reason="cancelled", usage=usage))
        async with await asking as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (409, "cancelled")


async def test_a_gateway_that_stops_says_so_and_stops_the_job(
    running: tuple[Gateway, str], http: aiohttp.ClientSession, conductor: ActingConductor
) -> None:
    async with begun(http, conductor) as (asking, spec, _):
        await eventually(lambda: running[0].watch.num_open == 1)
        running[0].stopping.set()
        async with await asking as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "shutting_down")
            assert answer.headers["Retry-After"] == "1"
        assert await is_cancelled(conductor, spec)


@pytest.mark.parametrize(("key", "goes_on"), [({}, False), ({"Idempotency-Key": "k"}, True)])
@pytest.mark.parametrize(("path", "fields"), [(URL, {"messages": HI}), ("/v1/responses", {"input": "Hi"})])
async def test_a_stream_of_a_gateway_that_stops_says_so_and_stops_the_job(
    running: tuple[Gateway, str],
    http: aiohttp.ClientSession,
    conductor: ActingConductor,
    path: str,
    fields: dict[str, Any],
    key: dict[str, str],
    goes_on: bool,
) -> None:
    asking = asyncio.ensure_future(http.post(path, json={"model": "m", "stream": True, **fields}, headers=key))
    spec = (await conductor.take()).spec
    await conductor.commit(spec.job_id, await conductor.begin(spec), 0, ["a"])
    async with await asking as answer:
        running[0].stopping.set()
        assert b"this gateway is stopping" in await answer.content.read()
    await eventually(lambda: running[0].watch.num_open == 0)
    assert await is_cancelled(conductor, spec) is not goes_on


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", URL, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/v1/models/none/such", 404, "model_not_found"),
        ("POST", URL, 400, "invalid_request"),
    ],
)
async def test_every_error_has_openais_shape(
    http: aiohttp.ClientSession, method: str, path: str, status: int, code: str
) -> None:
    async with http.request(method, path, headers={"X-Request-Id": "mine"}) as answer:
        said = await answer.json()
    assert (answer.status, set(said), set(said["error"])) == (status, {"error"}, {"message", "type", "param", "code"})
    assert said["error"]["code"] == code
    assert answer.headers["X-Request-Id"] == "mine"


async def test_limits_are_openais_errors_as_well(start_gateway: OpenGateway) -> None:
    async with (
        start_gateway(limits=Limits(max_body_bytes=1000, max_streams=1)) as (gateway, url),
        aiohttp.ClientSession(base_url=url) as http,
    ):
        async with http.post(URL, json=body(messages=[{"role": "user", "content": "x" * 2000}])) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")
        async with gateway.watch.place("another"), http.post(URL, json=body()) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
            error = (await answer.json())["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert (await gateway.store.counts()).queued == 0, "nothing is accepted half"


async def test_models_as_vllm_lists_them(
    http: aiohttp.ClientSession, conductor: ActingConductor, running: tuple[Gateway, str]
) -> None:
    await conductor.show_model("hub/model-2b", "a" * 64)
    async with http.get("/v1/models") as answer:
        [model] = (await answer.json())["data"]
    assert (model["id"], model["root"], model["object"]) == ("hub/model-2b", "hub/model-2b", "model")
    async with http.get("/v1/models/hub/model-2b") as answer:
        assert (await answer.json())["id"] == "hub/model-2b"
    async with http.post(URL, json=body(model="other")) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (404, "model_not_found", "model")
