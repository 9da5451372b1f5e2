"""The page where keys are on: it asks for one, keeps it in its tab, and offers what it allows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from broker_pipeline.messages.keys import GatewayKey, Scope
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.redis_client import RedisClient
from tests.gateway.conftest import OpenGateway
from tests.kit.viewing.browser import needs_browser, visit

pytestmark = needs_browser

NewKey = Callable[..., Awaitable[str]]


@pytest_asyncio.fixture
async def new_key(redis: RedisClient, namespace: str) -> NewKey:
    async def make(tenant: str, *scopes: Scope) -> str:
        key = GatewayKey(tenant=tenant, scopes=scopes, created_at=1.0)
        return await GatewayKeys(redis, namespace).create(key)

    return make


@pytest_asyncio.fixture
async def url(start_gateway: OpenGateway, new_key: NewKey) -> AsyncIterator[str]:
    """A gateway that has keys."""
    await new_key("somebody", "submit")
    async with start_gateway() as (_, address):
        yield address


async def use(page: Page, secret: str) -> None:
    await page.get_by_label("Key", exact=True).fill(secret)
    await page.get_by_role("button", name="Use this key").click()


async def test_it_asks_for_a_key_until_it_has_one_that_is_known(url: str, browser: Browser, new_key: NewKey) -> None:
    secret = await new_key("alice", "submit", "read")
    async with visit(browser, url) as visited:
        page = visited.page
        await expect(page.get_by_role("dialog", name="This gateway wants a key")).to_be_visible()
        await expect(page.locator("#jobs")).to_be_hidden()
        await use(page, "wrong")
        await expect(page.locator("#key-why")).to_contain_text("does not know this key")
        await use(page, secret)
        await expect(page.locator("#key-dialog")).to_be_hidden()
        await expect(page.locator("#jobs-note")).to_contain_text("No jobs yet")
        await expect(page.get_by_role("button", name="Key of alice")).to_be_visible()
        assert await page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", f"{url}/"]
        await page.reload()
        await expect(page.get_by_role("button", name="Key of alice")).to_be_visible()
        await page.get_by_role("button", name="Key of alice").click()
        await page.get_by_role("button", name="Forget the key").click()
        await expect(page.locator("#key-dialog")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
        assert secret not in "".join(visited.asked)


async def test_a_key_that_only_reads_is_offered_no_questions(url: str, browser: Browser, new_key: NewKey) -> None:
    async with visit(browser, url) as visited:
        await use(visited.page, await new_key("alice", "read"))
        reason = "This key may not ask: it lacks the scope “submit”."
        await expect(visited.page.locator("#ask-note")).to_have_text(reason)
        await expect(visited.page.get_by_role("button", name="Ask")).to_be_disabled()


async def test_a_key_that_only_submits_may_ask_and_says_that_it_sees_nothing(
    url: str, browser: Browser, new_key: NewKey
) -> None:
    async with visit(browser, url) as visited:
        page = visited.page
        await use(page, await new_key("alice", "submit"))
        await expect(page.locator("#ask-note")).to_have_text("This key may not see answers: it lacks the scope “read”.")
        await expect(page.locator("#jobs")).to_be_hidden()
        await page.get_by_label("Question").fill("What?")
        await page.get_by_role("button", name="Ask").click()
        await expect(page.locator("#ask-note")).to_contain_text("Accepted as job")


async def test_a_key_that_is_withdrawn_is_asked_for_anew(
    url: str, browser: Browser, new_key: NewKey, redis: RedisClient, namespace: str
) -> None:
    secret = await new_key("alice", "submit", "read")
    async with visit(browser, url) as visited:
        await use(visited.page, secret)
        await expect(visited.page.locator("#jobs-note")).to_contain_text("No jobs yet")
        await GatewayKeys(redis, namespace).revoke("alice")
        await expect(visited.page.locator("#key-why")).to_contain_text("does not know this key (any more)")
