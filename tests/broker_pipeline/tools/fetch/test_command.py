"""`broker-pipeline fetch` as a person runs it, kills it and runs it again."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker_pipeline.artifact_manifest import MANIFEST_NAME, VISION_FILE
from broker_pipeline.tools.fetch.run import WORK_NAME
from tests.kit.file_server import FileServer
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.waiting import eventually


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "broker_pipeline", "fetch", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(*arguments: str) -> tuple[int | None, str]:
    async with started(*arguments) as process:
        output, _ = await process.communicate()
        return process.returncode, output.decode()


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
async def test_a_fetch_that_is_ended_in_the_middle_goes_on_there(tmp_path: Path, sig: signal.Signals) -> None:
    whole, target = tiny_artifact(tied=False), tmp_path / "to"
    async with FileServer.serving(whole) as server:
        server.hold_after[VISION_FILE] = 600_000
        partial = target / WORK_NAME / VISION_FILE
        async with started("--vision", server.url, str(target)) as process:
            await eventually(lambda: partial.exists() and partial.stat().st_size > 400_000)
            process.send_signal(sig)
            output, _ = await process.communicate()
        if sig == signal.SIGINT:
            assert process.returncode == 130
            assert "goes on from there" in output.decode()
        assert not (target / MANIFEST_NAME).exists()
        server.hold_after.clear()
        code, text = await run("--vision", server.url, str(target))
        assert code == 0, text
        starts = [start for name, start in server.asked if name == VISION_FILE]
        assert starts[0] == 0
        assert starts[1] > 300_000
    assert (target / VISION_FILE).read_bytes() == (whole / VISION_FILE).read_bytes()
    assert "fingerprint" in text


async def test_what_is_wrong_with_the_command_line_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    whole, target = str(tiny_artifact(tied=False)), tmp_path / "to"
    for arguments, said in (
        ((whole,), "nothing is asked for"),
        (("--role", "stage", whole), "--role stage needs --blocks"),
        (("--blocks", "4:9", whole), "has blocks 0:6"),
        (("--vision", str(tmp_path / "nowhere")), "there is no directory"),
        (("--vision", "ftp://host/x"), "FROM is a directory, or a URL"),
    ):
        code, text = await run(*arguments, str(target))
        assert code == 2, text
        assert said in text
    code, text = await run("--role", "conductor", whole, str(target))
    assert code == 0, text
    assert not list(target.glob("*.safetensors"))
    code, text = await run("--vision", whole, whole)
    assert "same directory" in text
