"""Whatever value is wrong, and by whatever way it comes, the answer names it as its sender wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec
import pytest

from broker_pipeline.messages.sampling import SamplingParams
from gateway.schemas import JobListQuery, JobQuery, JobRequest
from tests.kit.wrong_values import field_types, texts_of, wrong_values


def wrong_fields(struct: type[msgspec.Struct]) -> Iterator[tuple[str, Any]]:
    for name, kind in field_types(struct).items():
        for value in wrong_values(kind):
            yield name, value


async def named_field(answer: aiohttp.ClientResponse) -> str:
    error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (400, "invalid_request"), error
    assert "$" not in error["message"].partition("regex")[0]
    return str(error["field"])


def is_or_is_in(found: str, field: str) -> bool:
    return found == field or found.startswith((f"{field}[", f"{field}."))


async def test_json_bodies(http: aiohttp.ClientSession) -> None:
    bodies = [({name: value}, name) for name, value in wrong_fields(JobRequest)]
    bodies += [({"sampling": {name: value}}, f"sampling.{name}") for name, value in wrong_fields(SamplingParams)]
    assert len(bodies) > 40
    for body, field in bodies:
        async with http.post("/v1/jobs", json=body) as answer:
            assert is_or_is_in(await named_field(answer), field), body


async def test_forms(http: aiohttp.ClientSession) -> None:
    fields = [(name, texts_of(value)) for name, value in wrong_fields(SamplingParams)]
    for name, texts in fields:
        if name in {"bad_words", "stop"} and texts[0].startswith("[["):
            continue  # a word like any other
        async with http.post("/v1/jobs", data=form(name, texts)) as answer:
            assert is_or_is_in(await named_field(answer), name), texts
    for name, value in wrong_fields(SamplingParams):
        request = msgspec.json.encode({"sampling": {name: value}}).decode()
        async with http.post("/v1/jobs", data=form("request", [request])) as answer:
            assert is_or_is_in(await named_field(answer), f"request.sampling.{name}"), request


def form(name: str, texts: list[str]) -> aiohttp.FormData:
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("image", b"x", filename="x")
    for text in texts:
        data.add_field(name, text)
    return data


@pytest.mark.parametrize(("path", "struct"), [("/v1/jobs", JobListQuery), ("/v1/jobs/x", JobQuery)])
async def test_queries(http: aiohttp.ClientSession, path: str, struct: type[msgspec.Struct]) -> None:
    for name, value in wrong_fields(struct):
        for text in texts_of(value):
            if name == "search" and 0 < len(text) <= 200:
                continue  # a word like any other
            async with http.get(path, params={name: text}) as answer:
                assert await named_field(answer) == name, text
    for params in ([("page", "1")], [(name, "1") for name in field_types(struct) for _ in range(2)]):
        async with http.get(path, params=params) as answer:
            assert await named_field(answer) == params[0][0]


async def test_a_cursor_of_no_page(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/jobs", params={"after": "x"}) as answer:
        assert await named_field(answer) == "after"


@pytest.mark.parametrize(
    ("method", "path", "header", "value"),
    [
        ("POST", "/v1/jobs", "Idempotency-Key", "a key"),
        ("POST", "/v1/jobs", "Content-Type", "text/plain"),
        ("GET", "/v1/jobs/x/events", "Last-Event-ID", "-1"),
    ],
)
async def test_headers(http: aiohttp.ClientSession, method: str, path: str, header: str, value: str) -> None:
    async with http.request(method, path, data=b"x", headers={"Content-Type": "text/plain", header: value}) as answer:
        assert await named_field(answer) == header
