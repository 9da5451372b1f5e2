"""docs/operations.md on a Docker Engine: images are built, `docker compose` starts them, and containers come and go.

    DOCKER_HOST=unix:///… pytest tests/hosts/test_containers.py

`BUILD_FLAGS` are flags of `docker build` for both images, as `--build-arg PYTHON_IMAGE=…`; NATS_IMAGE and REDIS_IMAGE
are as in compose/.env.example. Nothing has a GPU.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.kit.documents import ROOT
from tests.kit.hosts.engine import EnginePage, Project, docker, engine_page, why_no_engine
from tests.kit.hosts.rights import PLACES, check_rights_of, check_that_servers_are_shut
from tests.kit.hosts.steps import (
    HOSTS,
    IMAGES,
    SINGLE_HOST,
    caption,
    captions_going_on,
    planning_a_cut,
    prepare,
    start_as_planned,
)
from tests.kit.waiting import eventually

_WHY_NOT = why_no_engine()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(_WHY_NOT), reason=_WHY_NOT),
]


@pytest.fixture(scope="module", autouse=True)
def images() -> list[str]:
    """Build what the page has people build; return the names."""
    flags = shlex.split(os.environ.get("BUILD_FLAGS", ""))
    builds = [shlex.split(line.split("docker build", 1)[1]) for line in IMAGES.splitlines()]
    for words in builds:
        subprocess.run(["docker", "build", *flags, *words], cwd=ROOT, check=True)
    return [words[words.index("-t") + 1] for words in builds]


async def test_everything_on_one_host(tmp_path: Path) -> None:
    await prepare(tmp_path)
    *commands, starting = SINGLE_HOST.strip().splitlines()
    changes = {
        "VISION=true": "VISION=true CONTAINER_RUNTIME=runc",
        "/srv/": f"{tmp_path}/here/srv/",
        "10.0.0.2": "10.0.0.1",
    }
    async with engine_page(tmp_path, ["here"], changes) as page:
        await page.type_here("\n".join(commands))
        await page.type_on("here", starting)
        await caption(page, "single")
        (project,) = page.projects
        for container in await project.containers():
            await check_container(container)
        await check_that_servers_are_shut(page.address(1), page.address(1))
        done = await jobs(page, "succeeded")
        async with captions_going_on(page):
            for container in await project.containers():
                await captions_under_way(page)
                await kill(container)
        assert {(await ask(page, f"/v1/jobs/{each['job_id']}"))["status"] for each in done} == {"succeeded"}
        await stop_in_the_middle(page, project)
        assert await jobs(page, "failed") == []


async def check_container(container: dict[str, Any]) -> None:
    """Hold what the engine made of a compose file against what the page says that containers are given."""
    name, given = container["Name"], container["HostConfig"]
    check_rights_of(container["State"]["Pid"])
    assert container["State"]["Health"]["Status"] == "healthy"
    assert given["ReadonlyRootfs"] is True
    assert not given["Privileged"]
    assert given["Memory"] > 0
    assert given["PidsLimit"] > 0
    assert given["LogConfig"]["Config"].keys() == {"max-size", "max-file"}
    assert given["Ulimits"] == [{"Name": "core", "Hard": 0, "Soft": 0}]
    for path in PLACES:
        with pytest.raises(AssertionError, match=r"Read-only file system|No such file"):
            await docker("exec", container["Id"], "touch", path)
    published = {port for port, bindings in container["NetworkSettings"]["Ports"].items() if bindings}
    assert published <= {"4222/tcp", "6379/tcp", "8080/tcp"}, name
    variables = " ".join(container["Config"]["Env"])
    sources = {mount["Destination"]: Path(mount["Source"]) for mount in container["Mounts"] if not mount["RW"]}
    folder = sources.get("/secrets") or sources["/etc/broker-pipeline"]
    for secret in (*folder.glob("*.nk"), *folder.glob("*.redis"), *folder.glob("*.key")):
        assert secret.read_text().strip() not in variables


async def kill(container: dict[str, Any]) -> None:
    """Kill its process, as the kernel does without memory; return when the engine has it well again."""
    killed = time.monotonic()
    os.kill(container["State"]["Pid"], signal.SIGKILL)

    async def is_back() -> bool:
        (now,) = json.loads(await docker("inspect", container["Id"]))
        is_another = now["State"]["StartedAt"] != container["State"]["StartedAt"]
        return bool(is_another and now["State"]["Health"]["Status"] == "healthy")

    await eventually(is_back, timeout_s=60)
    print(f"{container['Name']}: well again after {time.monotonic() - killed:.1f} s", file=sys.stderr)


async def stop_in_the_middle(page: EnginePage, project: Project) -> None:
    """Everything drains while it has captions to do, and goes on with them when it is started again."""
    async with captions_going_on(page):
        await captions_under_way(page)
        started = time.monotonic()
        await project.run("stop")
        print(f"stopped in {time.monotonic() - started:.1f} s", file=sys.stderr)
        assert time.monotonic() - started < 25, "something waited for what had stopped before it"
        codes = {container["Name"]: container["State"]["ExitCode"] for container in await project.containers()}
        assert set(codes.values()) == {0}, codes
        await project.run("down")
        await project.run("up -d --wait")


async def test_a_plan_over_several_hosts(tmp_path: Path, images: list[str]) -> None:
    await prepare(tmp_path)
    async with engine_page(tmp_path, HOSTS, {}) as page:
        runs = await start_as_planned(page, await page.type_here(planning_a_cut()))
        assert [project.host for project in page.projects] == list(runs.values())
        assert {"broker", "gateway", "stage-0", "stage-1", "vision-0"} == set(runs)
        await caption(page, "planned")
        for project in page.projects:
            for container in await project.containers():
                await check_container(container)
        await check_that_servers_are_shut(page.address(1), page.address(2))
        await lose_a_host(page)
        await upgrade_everything(page, images)
        assert await jobs(page, "failed") == []


async def lose_a_host(page: EnginePage) -> None:
    """All its containers are gone at once, which the engine does not start again, and come back later."""
    lost = next(project for project in page.projects if project.host == "gpu-b")
    async with captions_going_on(page):
        await captions_under_way(page)
        await lost.run("kill")
        await eventually(lambda: is_missing_something(page), timeout_s=60)
        await lost.run("up -d --wait")


async def upgrade_everything(page: EnginePage, images: list[str]) -> None:
    """Type the same `up` again with new images, host after host, and start the servers anew, while captions go on."""
    for image in images:
        release = rf"FROM {image}\nLABEL built={time.time()}\n"
        await page.type_here(f"docker build -q -t {image} - <<<$'{release}'")
    async with captions_going_on(page) as took:
        for project in page.projects:
            await captions_under_way(page)
            started = time.monotonic()
            before = {container["State"]["StartedAt"] for container in await project.containers()}
            await project.run("restart" if project.host == "broker" else "up -d --wait")
            after = {container["State"]["StartedAt"] for container in await project.containers()}
            assert not before & after, f"{project.host}: something runs on as it was"
            print(f"{project.host}: upgraded in {time.monotonic() - started:.1f} s", file=sys.stderr)
    print(f"rounds: {', '.join(f'{seconds:.1f} s' for seconds in took)}", file=sys.stderr)


async def captions_under_way(page: EnginePage) -> None:
    """Return when the pipeline has captions to do."""

    async def has_jobs() -> bool:
        with suppress(aiohttp.ClientError):  # the gateway may be on its way
            return bool(await jobs(page, "running"))
        return False

    await eventually(has_jobs, timeout_s=60)


async def is_missing_something(page: EnginePage) -> bool:
    async with aiohttp.ClientSession() as http, http.get(f"{gateway(page)}/readyz") as answer:
        return answer.status == 503


async def jobs(page: EnginePage, status: str) -> list[Any]:
    """Return the newest jobs with a status."""
    return list((await ask(page, "/v1/jobs", status=status))["jobs"])


async def ask(page: EnginePage, path: str, **params: str) -> dict[str, Any]:
    """Return what the gateway answers to the operator."""
    key = (page.directory / "secrets/hosts/me/gateway.key").read_text().strip()
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}, raise_for_status=True) as http,
        http.get(f"{gateway(page)}{path}", params=params) as answer,
    ):
        return dict(await answer.json())


def gateway(page: EnginePage) -> str:
    """Return its URL, which is on the second host, or on the only one."""
    return f"http://{page.address(min(2, len(page.names)))}:8080"
