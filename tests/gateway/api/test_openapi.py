"""The OpenAPI document tells of every route, and holds together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from gateway.api.openai.batch.endpoints import ENDPOINTS
from gateway.api.openapi import OPERATIONS, openapi_document
from gateway.app import all_routes

DOCUMENT = msgspec.json.decode(msgspec.json.encode(openapi_document()))


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def test_every_route_is_described_and_nothing_else() -> None:
    routes = (route for route in all_routes() if isinstance(route, web.RouteDef))
    routed = {(route.method.lower(), re.sub(r":[^}]+}", "}", route.path)) for route in routes}
    assert {(operation.method, operation.path) for operation in OPERATIONS} == routed


def test_every_reference_leads_somewhere() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    references = {node["$ref"] for node in nodes(DOCUMENT) if isinstance(node.get("$ref"), str)}
    assert references
    assert all(reference.removeprefix("#/components/schemas/") in schemas for reference in references)


def test_operations_have_what_openapi_demands() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert {"title", "version"} <= set(DOCUMENT["info"])
    names = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
    for path, methods in DOCUMENT["paths"].items():
        for operation in methods.values():
            assert all(answer["description"] for answer in operation["responses"].values())
            in_path = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
            assert in_path == [part.strip("{}") for part in path.split("/") if part.startswith("{")]
            assert all({"name", "in", "schema"} <= set(each) for each in operation["parameters"])


def test_limits_are_part_of_the_document() -> None:
    sampling = DOCUMENT["components"]["schemas"]["SamplingParams"]["properties"]
    temperature = next(choice for choice in sampling["temperature"]["anyOf"] if choice["type"] == "number")
    assert (temperature["minimum"], temperature["maximum"]) == (0, 2)
    (limit,) = [each for each in DOCUMENT["paths"]["/v1/jobs"]["get"]["parameters"] if each["name"] == "limit"]
    assert (limit["schema"]["minimum"], limit["schema"]["maximum"]) == (1, 1000)


def test_what_texts_have_to_look_like_is_part_of_the_document() -> None:
    request = DOCUMENT["components"]["schemas"]["BatchRequest"]["properties"]
    assert request["endpoint"]["enum"] == list(ENDPOINTS)
    window = re.compile(request["completion_window"]["pattern"])
    assert [bool(window.search(text)) for text in ("24h", "24", "0h", "1 h")] == [True, False, False, False]
    headers = {
        parameter["name"]: re.compile(parameter["schema"]["pattern"])
        for path in DOCUMENT["paths"].values()
        for operation in path.values()
        for parameter in operation["parameters"]
        if parameter["in"] == "header"
    }
    assert [bool(headers["Idempotency-Key"].search(text)) for text in ("a-1", "", "a b")] == [True, False, False]
    assert [bool(headers["Last-Event-ID"].search(text)) for text in ("7", "7.1", "", "x7")] == [
        True,
        True,
        False,
        False,
    ]


async def test_a_path_allows_the_methods_that_are_described(http: aiohttp.ClientSession) -> None:
    for path, methods in DOCUMENT["paths"].items():
        async with http.request("PATCH", re.sub("{.*?}", "app.js", path)) as answer:
            allowed = {method.lower() for method in answer.headers["Allow"].split(",")}
        assert (answer.status, allowed - {"head"}) == (405, set(methods)), path


async def test_it_is_served(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert await answer.json() == DOCUMENT
    async with http.get("/") as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert "/v1/status" in await answer.text()
