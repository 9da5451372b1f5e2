"""The page as a person sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from broker_pipeline.captioning.report.sink import ReportSink
from tests.broker_pipeline.captioning.report.rows import failed, line, row
from tests.broker_pipeline.captioning.report.test_sink import HOSTILE
from tests.kit.viewing.browser import needs_browser, open_browser, visit

pytestmark = needs_browser


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture
def url(tmp_path: Path) -> str:
    sink = ReportSink(tmp_path / "report.html", HOSTILE)
    for number in range(60):
        sink.add(row(line(caption=f"a caption of {number} words"), id=f"{number}.png"))
    sink.add(row(line(caption=f"{HOSTILE} {'long' * 200}", prompt=HOSTILE), id=HOSTILE))
    sink.add(row(line(caption="w" * 80, guard="g" * 100, model="m" * 80), id="unbroken.png"))
    sink.add(row(failed(), id="failed.png"))
    sink.add(row(failed(code="other"), id=f"other{'long' * 200}.png"))
    sink.close(is_whole=True)
    return (tmp_path / "report.html").as_uri()


@pytest.mark.parametrize("width", [375, 1600])
async def test_all_of_it_is_seen_and_nobody_is_asked(browser: Browser, url: str, width: int) -> None:
    async with visit(browser, url, width=width) as visited:
        page = visited.page
        for text in ("of them marked by a guard", "Words per caption", "a caption of", "failed.png"):
            await expect(page.get_by_text(text).first).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        assert await page.locator(".sample img").evaluate_all("all => all.every(each => each.naturalWidth == 96)")
        assert await page.locator(".chart rect").first.evaluate("bar => bar.getBoundingClientRect().width") > 5
        assert [address for address in visited.asked if not address.startswith("data:")] == [url]
        assert not visited.complaints


async def test_a_keyboard_opens_what_is_folded(browser: Browser, url: str) -> None:
    async with visit(browser, url) as visited:
        page = visited.page
        summary = page.locator("summary").filter(has_text="other")
        await summary.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("otherlong").first).to_be_visible()


async def test_it_is_dark_where_a_person_wants_that(browser: Browser, url: str) -> None:
    grounds = []
    for is_dark in (False, True):
        async with visit(browser, url, is_dark=is_dark) as visited:
            grounds.append(await visited.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(244, 246, 248)", "rgb(15, 19, 25)"]


async def test_a_script_or_picture_that_got_in_would_do_nothing(browser: Browser, url: str) -> None:
    async with visit(browser, url) as visited:
        await visited.page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.text = "document.title = 'taken'";
                document.body.append(script);
                const image = document.createElement("img");
                image.src = "http://127.0.0.1:9/x.png";
                document.body.append(image);
            }"""
        )
        assert await visited.page.title() != "taken"
        assert len(visited.complaints) == 2
