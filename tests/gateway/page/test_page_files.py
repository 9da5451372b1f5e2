"""The page as it is served: types, caching, what it may load; and that wheels have it."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "gateway" / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
async def test_every_file_says_what_it_is_and_what_it_may_load(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as answer:
        name = "index.html" if path == "/" else path.removeprefix("/page/")
        assert answer.status == 200
        assert answer.content_type == TYPES[Path(name).suffix]
        assert await answer.read() == (FOLDER / name).read_bytes()
        policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["Content-Security-Policy"].split(";"))
        tag = answer.headers["ETag"]
        assert (answer.headers["X-Content-Type-Options"], answer.headers["Cache-Control"]) == ("nosniff", "no-cache")
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert (policy["frame-ancestors"], policy["require-trusted-types-for"]) == ("'none'", "'script'")
    async with http.get(path, headers={"If-None-Match": tag}) as again:
        assert (again.status, again.headers["ETag"], await again.read()) == (304, tag, b"")


@pytest.mark.parametrize("name", ["nothing.js", "../app.py", "%2e%2e%2fapp.py", "..%2f..%2fpyproject.toml"])
async def test_nothing_else_is_served(http: aiohttp.ClientSession, name: str) -> None:
    async with http.get(f"/page/{name}") as answer:
        assert answer.status == 404


@pytest.mark.parametrize("name", FILES)
def test_no_file_asks_anybody_else_or_parses_html(name: str) -> None:
    text = (FOLDER / name).read_text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", text)) - {"http://www.w3.org/2000/svg"}
    assert not addresses
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    if name.endswith(".html"):
        assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", text)


def test_wheels_have_it() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gateway"]
    assert all(any(fnmatch(f"page/{name}", pattern) for pattern in patterns) for name in FILES)
