"""docs/operations.md on several hosts, typed as it stands there: captions, a host lost, everything upgraded."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from broker_pipeline.tools.demo.pictures import scenes, trained_model
from tests.kit.hosts.page import FollowedPage, followed_page
from tests.kit.hosts.rights import PLACES, check_rights_of, check_that_servers_are_shut, no_proof
from tests.kit.hosts.steps import (
    AT_A_HOST,
    BY_HAND,
    CAPTIONING,
    COPYING,
    EXPORTING,
    HOSTS,
    KEYS,
    MEASURING,
    MEMORY_GB,
    PICTURES,
    PLANNING,
    SINGLE_HOST,
    STARTING,
    caption,
    captions_going_on,
    planning_a_cut,
    prepare,
    put_pictures,
    start_as_planned,
)
from tests.kit.running.debian_servers import needs_debians_servers
from tests.kit.running.netlab import is_possible

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not is_possible(), reason="needs root, iproute2 and /dev/net/tun"),
    needs_debians_servers,
]

WEBHOOK = (
    "BROKER_PIPELINE_WEBHOOK_URL=https://hooks.example.com/done "
    "BROKER_PIPELINE_WEBHOOK_SECRET_FILE=/secrets/webhook.secret"
)
BLOCKS = {"0:18": "0:2", "18:27": "2:3", "27:": "3:"}
"""The page's model has 36 layers, the demo's 5."""


def listening(page: FollowedPage, host: str) -> set[int]:
    """The ports of a host that others reach."""
    command = page.lab.inside(HOSTS.index(host) + 1, ["ss", "-Htln"])
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = [line.split()[3].rsplit(":", 1) for line in lines]
    return {int(port) for address, port in addresses if not address.startswith(("127.", "[::1]"))}


async def first_byte_from(host: str, port: int, context: ssl.SSLContext) -> bytes:
    """What a port says to somebody without a certificate."""
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(bytes(64))
        return await reader.readexactly(1)
    finally:
        writer.close()


async def test_the_page_leads_from_nothing_to_captions(tmp_path: Path) -> None:
    """Every step of the page, and what `plan` prints: hosts are measured, whatever the plan is then."""
    put_pictures(tmp_path)
    ours = {"CHECKPOINT": str(trained_model()), "--shape 8B": "--shape demo"}
    async with followed_page(tmp_path, HOSTS, ours) as page:
        await page.type_here(EXPORTING)
        await page.type_here(MEASURING)
        await start_as_planned(page, await page.type_here(PLANNING))
        await caption(page, "planned")


async def test_env_files_of_a_plan_start_a_model_that_is_cut_over_unlike_hosts(tmp_path: Path) -> None:
    await prepare(tmp_path)
    async with followed_page(tmp_path, HOSTS, {}) as page:
        runs = await start_as_planned(page, await page.type_here(planning_a_cut()))
        assert {name: runs[name] for name in runs if "-" in name} == {
            "stage-0": "gpu-a",
            "stage-1": "gpu-b",
            "vision-0": "eyes",
        }
        for host in ("gpu-a", "gpu-b", "eyes"):
            (container,) = page.containers[host]
            assert container.service["runtime"] == "runc"
            assert container.service["mem_limit"] == f"{2048 + int(MEMORY_GB[host] * 1e9) // 2**20}m"
        await caption(page, "cut")


async def test_hosts_without_a_plan_and_an_upgrade(tmp_path: Path) -> None:
    await prepare(tmp_path)
    async with followed_page(tmp_path, HOSTS, BLOCKS) as page:
        await page.type_here(BY_HAND)
        await page.type_here(COPYING)
        for host, command in AT_A_HOST.findall(STARTING):
            await page.type_on(host, command)
        assert len({container.name for container in page.everything}) == 8, "nothing replaces its neighbour"
        await caption(page, "first")
        await check_that_others_get_keys(page)
        await check_rights(page)
        await check_that_doors_are_shut(page)
        await lose_a_host(page)
        await upgrade_everything(page)


async def check_that_others_get_keys(page: FollowedPage) -> None:
    key = re.search(r"bp-\S+", await page.type_here(KEYS))
    assert key is not None
    other = CAPTIONING.replace("BROKER_PIPELINE_SECRETS=secrets/hosts/me", f"BROKER_PIPELINE_KEY={key[0]}")
    await page.type_here(other.replace("captions.jsonl", "alice.jsonl"))


async def check_rights(page: FollowedPage) -> None:
    """No process may do anything beside its work, or has a place to write to beside its own."""
    for container in page.everything:
        assert container.process is not None
        check_rights_of(container.process.pid)
        for path in PLACES:
            assert await container.run("/usr/bin/touch", path) != 0, f"{container.name}: {path}"


async def check_that_doors_are_shut(page: FollowedPage) -> None:
    """For a stranger who reaches all ports, encrypts, and has no secret."""
    open_ports = {host: listening(page, host) for host in HOSTS}
    workers = {port for host in ("eyes", "gpu-a", "gpu-b") for port in open_ports[host]}
    assert (open_ports["broker"], open_ports["front"]) == ({4222, 6379}, {8080})
    assert len(workers) >= 1
    assert workers <= set(range(7400, 7416))
    with page.lab.entered(0):
        await check_that_servers_are_shut(page.lab.address(1), page.lab.address(2))
        for number, host in enumerate(HOSTS[2:], 3):
            for port in open_ports[host]:
                with pytest.raises((OSError, asyncio.IncompleteReadError)):
                    await first_byte_from(page.lab.address(number), port, no_proof())


async def lose_a_host(page: FollowedPage) -> None:
    """It and its stages are gone at once, and come back: that costs time only."""
    async with captions_going_on(page):
        lost = page.containers["gpu-b"]
        await asyncio.gather(*(container.process.destroy() for container in lost if container.process))
        for container in lost:
            await container.start()


async def upgrade_everything(page: FollowedPage) -> None:
    """Stop and start each part in turn, while captions go on."""
    async with captions_going_on(page) as took:
        for container in page.everything:
            assert await container.stop() == 0, container.name
            await container.start()
    print(f"rounds of {len(PICTURES)} captions: {', '.join(f'{seconds:.1f} s' for seconds in took)}", file=sys.stderr)


async def test_everything_on_one_host(tmp_path: Path) -> None:
    await prepare(tmp_path)
    *commands, starting = SINGLE_HOST.strip().splitlines()
    media = tmp_path / "here/srv/pictures"
    changes = {
        "VISION=true": f"VISION=true BROKER_PIPELINE_MEDIA_DIR=/srv/pictures {WEBHOOK}",
        "/srv/": f"{tmp_path}/here/srv/",
        "10.0.0.2": "10.0.0.1",
    }
    async with followed_page(tmp_path, ["here"], changes) as page:
        media.mkdir(parents=True)
        await page.type_here("\n".join(commands))
        (tmp_path / "here/srv/broker-pipeline/secrets/webhook.secret").write_text(f"whsec_{'A' * 32}")
        await page.type_on("here", starting)
        await caption(page, "single")
        await check_that_requests_may_name_files(page, media)


async def check_that_requests_may_name_files(page: FollowedPage, media: Path) -> None:
    """Those of the directory that the env file names, which the container has at the same path."""
    (media / "scene.png").write_bytes(scenes()[0].path.read_bytes())
    key = (page.directory / "secrets/hosts/me/gateway.key").read_text().strip()
    image = {"type": "image", "url": f"file://{media}/scene.png"}
    body = {"messages": [{"role": "user", "content": [image]}], "sampling": {"temperature": 0}}
    with page.lab.entered(0):
        async with aiohttp.ClientSession(
            f"http://{page.lab.address(1)}:8080", headers={"Authorization": f"Bearer {key}"}
        ) as http:
            async with http.post("/v1/jobs", json=body) as answer:
                job = await answer.json()
                assert answer.status == 202, job
            async with http.get(f"/v1/jobs/{job['job_id']}?wait_s=60") as answer:
                assert (await answer.json())["status"] == "succeeded"
