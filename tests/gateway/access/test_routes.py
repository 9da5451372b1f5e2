"""Every route against every kind of caller, by the table that the OpenAPI document is made of."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from broker_pipeline.messages.keys import GatewayKey, Scope
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient
from gateway.access.caller import ANYBODY, OPERATOR
from gateway.api.error_shapes import is_openai
from gateway.api.openapi import OPERATIONS, Operation, openapi_document
from tests.gateway.conftest import OPERATOR_TOKEN, OpenGateway

KEYS: dict[str, tuple[Scope, ...]] = {
    "submit": ("submit",),
    "read": ("read",),
    "both": ("submit", "read"),
    "operate": ("operate",),
}
REFUSALS = {401: "unauthenticated", 403: "permission_denied"}


def expected(operation: Operation, scopes: tuple[Scope, ...] | None) -> int | None:
    """The status that refuses a caller with these scopes, or None; without scopes, one without a key."""
    if operation.scope is None or (scopes and {"operate", operation.scope} & {*scopes, "any"}):
        return None
    return 401 if scopes is None else 403


async def refusal(http: aiohttp.ClientSession, operation: Operation, secret: str | None) -> int | None:
    """Ask, and return the status that refused the caller; other errors (no such job, no body) come after that."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    path = operation.path.replace("{", "").replace("}", "")
    async with http.request(operation.method, path, headers=headers) as answer:
        if answer.status not in REFUSALS:
            return None
        body = await answer.json()
        code = REFUSALS[answer.status]
        assert body["error"]["code"] == ("invalid_api_key" if is_openai(path) and answer.status == 401 else code)
        assert ("WWW-Authenticate" in answer.headers) == (answer.status == 401)
        return answer.status


@pytest_asyncio.fixture
async def secrets(redis: RedisClient, namespace: str) -> AsyncIterator[dict[str, str]]:
    keys = GatewayKeys(redis, namespace)
    yield {
        name: await keys.create(GatewayKey(tenant=name, scopes=scopes, created_at=1.0)) for name, scopes in KEYS.items()
    }


async def test_every_route_is_for_who_has_its_scope(start_gateway: OpenGateway, secrets: dict[str, str]) -> None:
    async with start_gateway() as (_, url), aiohttp.ClientSession(base_url=url) as http:
        for operation in OPERATIONS:
            told = {name: await refusal(http, operation, secrets[name]) for name in KEYS}
            assert told == {name: expected(operation, scopes) for name, scopes in KEYS.items()}, operation
            for stranger in (None, "bp-unknown"):
                assert await refusal(http, operation, stranger) == expected(operation, None), operation
            assert await refusal(http, operation, OPERATOR_TOKEN) is None, operation


async def test_without_keys_this_machine_may_do_everything_but_operate(start_gateway: OpenGateway) -> None:
    async with start_gateway() as (_, url), aiohttp.ClientSession(base_url=url) as http:
        for operation in OPERATIONS:
            refused = 403 if operation.scope == "operate" else None
            for secret in (None, "whatever an OpenAI client was given"):
                assert await refusal(http, operation, secret) == refused, operation
            assert await refusal(http, operation, OPERATOR_TOKEN) is None, operation


def test_the_document_says_what_each_route_needs() -> None:
    paths = openapi_document()["paths"]
    for operation in OPERATIONS:
        described = paths[operation.path][operation.method]
        named = [] if operation.scope == "any" else [operation.scope]
        assert described["security"] == ([{"key": named}] if operation.scope else [])
        assert operation.scope is None or {"401", "403"} <= set(described["responses"])
    assert {operation.operation_id for operation in OPERATIONS if operation.scope == "operate"} >= {"drainWorker"}
    assert not ANYBODY.may("operate")
    assert OPERATOR.may("submit")
