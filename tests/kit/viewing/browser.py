"""A person's browser: Debian's headless Chromium, driven by Playwright. Without it, tests of the page are skipped."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium-headless-shell")

expect.set_options(timeout=20_000)  # for a machine on which other tests run as well

_FLAGS = (
    "--no-sandbox",  # tests may run as root; they open nothing but their own gateway
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class Visit:
    """A page that somebody has opened, and what the browser had to say against it."""

    page: Page
    asked: list[str] = field(default_factory=list)
    """Every address that it asked."""
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts, and what the page's policy forbade; answers with an error status are not among them."""


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Start a browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visit(
    browser: Browser, url: str, *, width: int = 1600, height: int = 1000, is_dark: bool = False
) -> AsyncIterator[Visit]:
    """Open an address in a window of its own."""
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if is_dark else "light"
    )
    try:
        visited = Visit(await context.new_page())
        visited.page.set_default_timeout(30_000)
        visited.page.on("request", lambda request: visited.asked.append(request.url))
        visited.page.on("pageerror", lambda error: visited.complaints.append(str(error)))
        visited.page.on("console", lambda message: _note(visited, message.type, message.text))
        await visited.page.goto(url)
        yield visited
    finally:
        await context.close()


def _note(visited: Visit, kind: str, text: str) -> None:
    if kind == "error" and not text.startswith("Failed to load resource"):
        visited.complaints.append(text)
