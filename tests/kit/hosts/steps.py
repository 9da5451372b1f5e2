"""The steps of docs/operations.md about several hosts, as its tests take them: typed as they stand there."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.pictures import scenes, trained_model
from broker_pipeline.tools.local.processes import run_python
from tests.kit.documents import ROOT, code_blocks
from tests.kit.hosts.page import Page

HOSTS = ("broker", "front", "eyes", "gpu-a", "gpu-b")
IMAGES, EXPORTING, MEASURING, PLANNING, _PRINTED, COPYING, _STARTING, EXAMINING, CAPTIONING, KEYS = code_blocks(
    "docs/operations.md", "## Several hosts"
)
BY_HAND, STARTING = code_blocks("docs/operations.md", "### Without a plan")
(SINGLE_HOST,) = code_blocks("docs/operations.md", "### Everything on one host")
MEMORY_GB = {"eyes": 0.0088, "gpu-a": 0.007, "gpu-b": 0.0055}
"""With which the tower fits one host, and all layers none with KV."""
AT_A_HOST = re.compile(r"^ *([\w-]+)\$ +(docker compose .*)$", re.MULTILINE)
PICTURES = {
    f"{number}-{scene.path.name}": (scene.path.read_bytes() + bytes([number]), scene.expected)
    for number in range(4)
    for scene in scenes()
}
"""The demo's scenes, each some times: what stands after a picture's end makes it another file. With captions."""


def planning_a_cut() -> str:
    """Return the page's planning, for hosts that were not measured and have `MEMORY_GB`."""
    planning = PLANNING
    for name, size in MEMORY_GB.items():
        planning = planning.replace(f'probe = "{name}.json"', f'devices = [{{ name = "cpu", memory_gb = {size} }}]')
    return planning


async def prepare(directory: Path) -> None:
    """Put there what somebody has who begins to follow the page: an artifact, and pictures."""
    packages = [str(ROOT / package) for package in ("broker_pipeline", "gateway", "stages")]
    await run_python("compileall", ["-m", "compileall", "-q", *packages], log_path=directory / "compileall.log")
    (await make_artifact(directory, trained_model())).rename(directory / "artifacts")
    put_pictures(directory)


def put_pictures(directory: Path) -> None:
    (directory / "PICTURES").mkdir()
    for name, (picture, _) in PICTURES.items():
        (directory / "PICTURES" / name).write_bytes(picture)


async def caption(page: Page, name: str) -> None:
    """Caption the pictures as the page does, and hold what comes against what they show."""
    out = page.directory / f"{name}.jsonl"
    await page.type_here(CAPTIONING.replace("captions.jsonl", f"{out} --temperature 0 --again --patience-s 60"))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    said = {Path(line["path"]).name: line["caption"] for line in lines}
    assert said == {name: expected for name, (_, expected) in PICTURES.items()}


@asynccontextmanager
async def captions_going_on(page: Page) -> AsyncIterator[list[float]]:
    """Caption round after round while the context is open; each has to be right. Yields how long each took."""
    took: list[float] = []
    is_over = asyncio.Event()

    async def rounds() -> None:
        while not is_over.is_set():
            started = time.monotonic()
            try:
                await caption(page, f"round-{started}")
            except AssertionError as refused:  # `caption` waits for a gateway that goes away, and begins with none
                if "no gateway answers" not in str(refused):
                    raise
                await asyncio.sleep(0.2)
            else:
                took.append(time.monotonic() - started)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rounds())
        yield took
        is_over.set()


async def start_as_planned(page: Page, said: str) -> dict[str, str]:
    """Type what `plan` printed, with the page between its parts; return what each host runs, by the compose files."""
    here, there = said.split("and on the hosts", 1)
    await page.type_here("\n".join(re.findall(r"^  (broker-pipeline .*)$", here, re.MULTILINE)))
    await page.type_here(COPYING)
    starts = AT_A_HOST.findall(there)
    for host, command in starts:
        await page.type_on(host, command)
        if host == "broker":
            for other, start in starts:
                await examine(page, other, start)
    return {Path(command.split()[5]).name.removesuffix(".env"): host for host, command in starts}


async def examine(page: Page, host: str, start: str) -> None:
    """Ask the doctor about a host before anything runs there, as the page does."""
    service = {"stage": "stage", "vision": "vision", "gateway": "conductor"}.get(Path(start.split()[3]).stem)
    if service is not None:
        ((_, command),) = AT_A_HOST.findall(EXAMINING)
        asked = start.replace("up -d --wait", command[command.index("run --rm") :].replace(" stage ", f" {service} "))
        said = await page.type_on(host, asked)
        assert "0 to mend" in said
