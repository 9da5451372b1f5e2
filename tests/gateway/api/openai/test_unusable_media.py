"""Pictures and videos in OpenAI's requests that are none: a wrong value like any other, which is named."""

from __future__ import annotations

import base64
from typing import Any

import aiohttp
import pytest

BROKEN = {
    "not base64": "data:,x",
    "base64 that does not say so": "data:image/png," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
    "another kind of thing": "data:text/plain;base64,aGVsbG8=",
    "not what it says": "data:image/png;base64,aGVsbG8=",
    "percent-encoded": "data:image/png,%89PN",
    "nothing": "data:",
    "no bytes": "data:image/png;base64,",
    "no base64": "data:image/png;base64,@@@@",
    "base64 cut off": "data:image/png;base64,aGVsb",
    "a picture cut off": "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
    "no URL": "photo.png",
    "a scheme that is not read": "ftp://127.0.0.1/a.png",
    "an address that is not public": "http://127.0.0.1:1/a.png",
}


def chat(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": [part]}]}


def responses(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"model": "demo", "input": [{"role": "user", "content": [part]}]}


def asked(url: str) -> list[tuple[str, dict[str, Any], str]]:
    """Every place of a URL: path, body, and what names it."""
    place = "messages[0].content[0]"
    return [
        (*chat({"type": "image_url", "image_url": {"url": url}}), f"{place}.image_url.url"),
        (*chat({"type": "image_url", "image_url": url}), f"{place}.image_url"),
        (*chat({"type": "input_image", "image_url": url}), f"{place}.image_url"),
        (*chat({"type": "video_url", "video_url": {"url": url}}), f"{place}.video_url.url"),
        (*responses({"type": "input_image", "image_url": url}), "input[0].content[0].image_url"),
    ]


@pytest.mark.parametrize("url", BROKEN.values(), ids=BROKEN)
async def test_what_is_no_picture_is_refused_by_its_field(http: aiohttp.ClientSession, url: str) -> None:
    for path, body, field in asked(url):
        async with http.post(path, json=body) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["type"], error["param"]) == (400, "invalid_request_error", field), error
