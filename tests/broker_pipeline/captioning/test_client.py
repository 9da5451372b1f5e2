"""`broker_pipeline.Client`, as a script and an event loop use it."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from broker_pipeline import AsyncClient, Client
from broker_pipeline.errors import InvalidRequestError, UnreadableFileError
from tests.kit.running.captioner import Captioner, CaptioningConductor, folder, numbered_picture


async def test_pictures_of_every_form_are_captioned_in_their_order(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    path = next(folder(captioner.directory / "pictures", 1).rglob("*.png"))
    picture = Image.open(io.BytesIO(numbered_picture(2)))
    pictures: list[Any] = [path, str(path), numbered_picture(3), picture, {"image": picture}, "gone.png", {"text": 1}]
    async with AsyncClient(captioner.url, concurrency=3) as client:
        lines = [line async for line in client.map(pictures, "What?", max_tokens=9, system="Be kind.")]
        assert [line.is_success for line in lines] == [True] * 5 + [False] * 2
        assert [line.path for line in lines[-2:]] == ["gone.png", "#6"]
        assert lines[0].system == "Be kind."
        with pytest.raises(UnreadableFileError):
            await client.caption("gone.png")
        with pytest.raises(InvalidRequestError, match="unknown field `max_token`"):
            await client.caption(path, max_token=3)


async def test_a_script_needs_no_event_loop(captioner: Captioner, conductor: CaptioningConductor) -> None:
    path = next(folder(captioner.directory / "pictures", 1).rglob("*.png"))

    def script() -> tuple[str | None, int, Path]:
        with Client(captioner.url) as client:
            one = client.caption(path).caption
            first = next(client.map([path] * 5))
            return one, len(list(client.map([path] * 5, "What?"))), Path(first.path)

    one, num, first = await asyncio.to_thread(script)
    assert one is not None
    assert one.startswith("picture of")
    assert (num, first) == (5, path)


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="with Client"):
        await AsyncClient().caption("a.png")
