"""`broker-pipeline caption` as a person runs it, and a conductor that answers it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from broker_pipeline.errors import Failure
from broker_pipeline.messages.jobs import JobSpec
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.conductor import ActingConductor, acting_conductor

MODEL = ("acting-2b", "a" * 64)


def numbered_picture(number: int) -> bytes:
    """A PNG of one colour, another one for each number."""
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (number % 256, number // 256, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, count: int) -> Path:
    """Pictures in three folders below `root`."""
    for number in range(count):
        path = root / f"part-{number % 3}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered_picture(number))
    return root


def lines(out: Path) -> list[dict[str, Any]]:
    """What a file of captions holds."""
    return [json.loads(text) for text in out.read_bytes().split(b"\n")[:-1]] if out.exists() else []


@dataclass
class Run:
    """How the command ended and what it printed; `errors` where standard error was apart."""

    code: int
    text: str
    errors: str = ""


class Captioner:
    """Runs the command in a directory."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.url = url
        self.out = directory / "captions.jsonl"

    def argv(self, *argv: str | bytes) -> list[str | bytes]:
        return [sys.executable, "-m", "broker_pipeline", "caption", "--gateway", self.url, *argv]

    async def start(
        self, *argv: str | bytes, before: tuple[str, ...] = (), **streams: int
    ) -> asyncio.subprocess.Process:
        """Start it, `before` in front of its command line; its output goes into one pipe unless `streams` say else."""
        both = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT} | streams
        return await asyncio.create_subprocess_exec(*before, *self.argv(*argv), cwd=self.directory, **both)

    async def run(self, *argv: str | bytes, before: tuple[str, ...] = (), **streams: int) -> Run:
        async with asyncio.timeout(60.0):
            return await self.finish(await self.start(*argv, before=before, **streams))

    async def finish(self, process: asyncio.subprocess.Process) -> Run:
        output, errors = await process.communicate()
        assert process.returncode is not None
        return Run(process.returncode, (output or b"").decode(), (errors or b"").decode())


class CaptioningConductor:
    """Captions what comes, at a pace, and remembers how often it ran what."""

    def __init__(self, acting: ActingConductor) -> None:
        self.acting = acting
        self.failing: set[bytes] = set()
        self.seen: Counter[bytes] = Counter()
        self.delay_s = 0.0
        self.says: Callable[[JobSpec], str | Failure] | None = None
        """What it answers, in place of how large the picture is."""
        self.most = sys.maxsize
        """Captions after which it waits until it may go on: for tests that disturb a run halfway."""
        self.may_go_on = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, transport: Transport, redis: RedisClient, namespace: str) -> AsyncIterator[CaptioningConductor]:
        """One that names its model; `work` is the caller's."""
        async with acting_conductor(transport, redis, namespace) as acting:
            await acting.show_model(*MODEL)
            yield cls(acting)

    @classmethod
    @asynccontextmanager
    async def working(
        cls, transport: Transport, redis: RedisClient, namespace: str, delay_s: float = 0.0
    ) -> AsyncIterator[CaptioningConductor]:
        """One that works while the context is open."""
        async with cls.open(transport, redis, namespace) as conductor:
            conductor.delay_s = delay_s
            work = asyncio.ensure_future(conductor.work())
            try:
                yield conductor
            finally:
                work.cancel()
                await asyncio.wait({work})

    def caption(self, job: JobSpec, media: list[bytes]) -> str | Failure:
        self.seen[media[0]] += 1
        if self.says is not None:
            return self.says(job)
        return Failure("compute", "out of luck") if media[0] in self.failing else f"picture of {len(media[0])} bytes"

    async def work(self) -> None:
        while True:
            if (delivery := await self.acting.queue.pull(1.0)) is not None:
                await asyncio.sleep(self.delay_s)
                if self.seen.total() >= self.most:
                    await self.may_go_on.wait()
                await self.acting.run(delivery, self.caption)
