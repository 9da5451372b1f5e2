"""`broker_pipeline.Client`, as a script and an event loop use it."""

from __future__ import annotations

import asyncio
import builtins
import io
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from broker_pipeline import AsyncClient, Client
from broker_pipeline.captioning.client import as_item
from broker_pipeline.errors import InvalidRequestError, UnreadableFileError
from tests.kit.running.captioner import Captioner, CaptioningConductor, folder, numbered_picture


async def test_pictures_of_every_form_are_captioned_in_their_order(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    path = next(folder(captioner.directory / "pictures", 1).rglob("*.png"))
    picture = Image.open(io.BytesIO(numbered_picture(2)))
    pictures: list[Any] = [path, str(path), numbered_picture(3), picture, {"image": picture}]
    pictures += [bytearray(numbered_picture(4)), path.as_uri(), "gone.png", {"text": 1}, 7, None]
    async with AsyncClient(captioner.url, concurrency=3) as client:
        lines = [line async for line in client.map(pictures, "What?", max_tokens=9, system="Be kind.")]
        assert [line.is_success for line in lines] == [True] * 7 + [False] * 4
        assert [line.path for line in lines[-4:]] == ["gone.png", "#8", "#9", "#10"]
        assert lines[-2].error
        assert "`int` is no picture" in lines[-2].error.message
        assert lines[0].system == "Be kind."
        with pytest.raises(UnreadableFileError, match=r"gone\.png: "):
            await client.caption("gone.png")
        with pytest.raises(InvalidRequestError, match="unknown field `max_token`"):
            await client.caption(path, max_token=3)
        for one in (str(path), numbered_picture(1), {"train": [path]}):
            with pytest.raises(InvalidRequestError, match="map takes many pictures"):
                await anext(client.map(one))
        assert as_item("clip.mp4", "#0").is_video


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


async def test_what_a_client_says_of_pixels_and_frames_is_in_its_line(
    captioner: Captioner, conductor: CaptioningConductor
) -> None:
    path = next(folder(captioner.directory / "pictures", 1).rglob("*.png"))
    async with AsyncClient(captioner.url) as client:
        line = await client.caption(path, "What?", max_tokens=9, max_pixels=4096, fps=1.0)
        with pytest.raises(InvalidRequestError, match="fps"):
            await client.caption(path, fps=-1.0)
    assert line.parameters is not None
    assert line.parameters["max_pixels"] == 4096
    assert "fps" not in line.parameters, "it is no video"


async def test_a_notebook_sees_how_many_captions_have_come(
    captioner: Captioner,
    conductor: CaptioningConductor,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = next(folder(captioner.directory / "pictures", 1).rglob("*.png"))
    shell = type("ZMQInteractiveShell", (), {})()  # what rich knows a notebook by
    monkeypatch.setattr(builtins, "get_ipython", lambda: shell, raising=False)

    def script() -> list[str]:
        with Client(captioner.url) as client:
            lines = client.map([path] * 8, progress=True)
            next(lines)
            seen = capsys.readouterr().out
            return [seen, capsys.readouterr().out] if list(lines) else []

    first, rest = await asyncio.to_thread(script)
    assert "100%" not in first, "seven are still to come, whatever was asked already"
    assert "100%" in rest


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="with Client"):
        await AsyncClient().caption("a.png")
    with pytest.raises(InvalidRequestError, match="with Client"):
        Client().caption("a.png")
    with pytest.raises(InvalidRequestError, match="with Client"):
        next(Client().map(["a.png"]))


async def test_what_is_left_of_a_map_ends_with_its_client(captioner: Captioner, conductor: CaptioningConductor) -> None:
    def script() -> list[object]:
        with Client(captioner.url) as client:
            lines = client.map(numbered_picture(number) for number in range(500))
            next(lines)
        with pytest.raises(InvalidRequestError, match="with Client"):
            next(lines)
        with pytest.raises(InvalidRequestError, match="with Client"):
            client.caption(numbered_picture(1))
        return list(lines)

    assert await asyncio.to_thread(script) == []
    assert conductor.seen.total() < 200


@pytest.mark.parametrize(
    "call",
    [
        "for line in client.map(pictures()): print(line.caption, flush=True)",
        "while True: print(client.caption(PICTURES[0]).caption, flush=True)",
    ],
)
async def test_ctrl_c_is_raised_where_a_script_waits_and_nothing_else(
    captioner: Captioner, conductor: CaptioningConductor, call: str
) -> None:
    script = f"""
import time
from broker_pipeline import Client
from tests.kit.running.captioner import numbered_picture

PICTURES = [numbered_picture(number) for number in range(200)]

def pictures():
    yield from PICTURES
    time.sleep(600)

with Client("{captioner.url}") as client:
    {call}
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"picture of")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30.0):
        _, errors = await process.communicate()
    assert process.returncode == -signal.SIGINT
    assert not re.search("RuntimeError|never awaited|destroyed", errors.decode()), errors.decode()
    assert errors.decode().splitlines()[-1] == "KeyboardInterrupt"
