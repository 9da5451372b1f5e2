"""The page while something is away: it says what, keeps what it has, and goes on by itself."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import Browser, expect

from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from tests.kit.running.gateway_process import gateway_process
from tests.kit.viewing.browser import needs_browser, visit

pytestmark = needs_browser


async def test_what_is_away_is_said_and_what_comes_back_is_used(
    tmp_path: Path, browser: Browser, own_nats: EmbeddedNats, own_redis: EmbeddedRedis, namespace: str
) -> None:
    flags = (tmp_path, own_nats.url, own_redis.url, namespace)
    async with gateway_process(*flags) as (process, url):
        port = url.rpartition(":")[2]
        async with visit(browser, url) as visited:
            page = visited.page
            trouble, health = page.locator("#trouble"), page.locator("#health")
            await expect(page.locator("#picture")).to_contain_text("No conductor is active")
            await expect(health).to_have_text("not ready")
            await expect(page.get_by_role("img", name="Waiting over the last hour: between 0 and 0")).to_be_visible()
            own_redis.kill()
            await expect(trouble).to_contain_text("The pipeline is shown as of")
            await expect(page.locator("body")).to_have_class("stale")
            await own_redis.restart()
            await expect(trouble).to_be_hidden()
            process.kill()
            await expect(trouble).to_contain_text("The gateway does not answer.")
            await expect(health).to_have_text("no answer")
            await process.wait()
            async with gateway_process(*flags, "--port", port, name="again"):
                await expect(trouble).to_be_hidden()
                await expect(health).to_have_text("not ready")
            assert not visited.complaints
