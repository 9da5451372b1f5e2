"""What a page of another site can have a browser do: nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from broker_pipeline.errors import PermissionDeniedError
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient
from gateway.access.web_pages import WebPages
from gateway.settings import AccessSettings
from tests.gateway.conftest import OPERATOR_TOKEN, OpenGateway

APP = "https://app.example.com"
PAGES = WebPages(frozenset({APP}), frozenset({"captions.example.com"}))
HERE = {"Host": "127.0.0.1:8080"}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://[::1"},
        {"Origin": ""},
        {"Origin": "https://app.example.com.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
    ids=str,
)
def test_other_sites_are_refused(method: str, headers: dict[str, str]) -> None:
    with pytest.raises(PermissionDeniedError):
        PAGES.check_page(method, HERE | headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": APP, "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
    ids=str,
)
def test_ones_own_pages_and_those_let_in_are_served(headers: dict[str, str]) -> None:
    PAGES.check_page("POST", HERE | headers)


def test_a_link_may_be_followed_and_a_form_not_sent() -> None:
    link = HERE | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    PAGES.check_page("GET", link)
    with pytest.raises(PermissionDeniedError):
        PAGES.check_page("POST", link)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "[fe80::1%eth0]", "10.1.2.3"),
        *("localhost:8080", "LOCALHOST", "a.localhost", "captions.example.com:443", None, ""),
    ],
)
def test_own_names(host: str | None) -> None:
    PAGES.check_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.x", "x:1:2"]
)
def test_names_that_lead_here_for_a_moment(host: str) -> None:
    with pytest.raises(PermissionDeniedError, match="--allow-host"):
        PAGES.check_host(host)
    WebPages(allowed_hosts=frozenset({"*"})).check_host(host)


@pytest_asyncio.fixture
async def http(start_gateway: OpenGateway) -> AsyncIterator[aiohttp.ClientSession]:
    access = AccessSettings(allowed_origins=(APP,), allowed_hosts=("captions.example.com",))
    async with start_gateway(access=access) as (_, url), aiohttp.ClientSession(base_url=url) as session:
        yield session


async def test_a_page_that_was_let_in_reads_answers_and_errors(http: aiohttp.ClientSession) -> None:
    for path in ("/v1/jobs", "/v1/jobs/unknown", "/nothing", "/healthz"):
        async with http.get(path, headers={"Origin": APP}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
        async with http.get(path, headers={"Origin": "https://evil.example"}) as answer:
            assert (answer.status, "Access-Control-Allow-Origin" in answer.headers) == (403, False)
    async with http.get("/healthz") as answer:
        assert answer.headers["Vary"] == "Origin"


async def test_a_browser_asks_first(http: aiohttp.ClientSession) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with http.options("/v1/jobs", headers={"Origin": APP, **asked}) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == APP
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
    async with http.options("/v1/jobs", headers={"Origin": "https://evil.example", **asked}) as answer:
        assert answer.status == 403
    async with http.options("/v1/jobs") as answer:
        assert answer.status == 405


async def test_a_name_counts_where_nobody_brings_a_key(
    start_gateway: OpenGateway, redis: RedisClient, namespace: str
) -> None:
    async def status(http: aiohttp.ClientSession, host: str, secret: str, path: str = "/v1/jobs") -> int:
        async with http.get(path, headers={"Host": host, "Authorization": f"Bearer {secret}"}) as answer:
            return answer.status

    async with start_gateway() as (_, url), aiohttp.ClientSession(base_url=url) as http:
        assert await status(http, "evil.example", "whatever") == 403
        assert await status(http, "evil.example", "whatever", "/healthz") == 200
        assert await status(http, "evil.example", OPERATOR_TOKEN) == 200
    secret = await GatewayKeys(redis, namespace).create(GatewayKey(tenant="a", scopes=("read",), created_at=1.0))
    async with start_gateway() as (_, url), aiohttp.ClientSession(base_url=url) as http:
        assert await status(http, "captions.example.com", secret) == 200
