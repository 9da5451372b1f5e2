"""docs/operations.md on several hosts, typed as it stands there: captions, a host lost, everything upgraded."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import nats
import nats.errors
import pytest
import redis.asyncio
import redis.exceptions

from broker_pipeline.tools.demo.artifact import make_artifact
from broker_pipeline.tools.demo.pictures import scenes, trained_model
from broker_pipeline.tools.local.processes import run_python
from tests.kit.documents import ROOT, code_blocks
from tests.kit.hosts.page import FollowedPage, followed_page
from tests.kit.running.debian_servers import needs_debians_servers
from tests.kit.running.netlab import is_possible

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not is_possible(), reason="needs root, iproute2 and /dev/net/tun"),
    needs_debians_servers,
]

HOSTS = ("broker", "front", "eyes", "gpu-a", "gpu-b")
_IMAGES, EXPORTING, MEASURING, PLANNING, _PRINTED, COPYING, _STARTING, EXAMINING, CAPTIONING, KEYS = code_blocks(
    "docs/operations.md", "## Several hosts"
)
BY_HAND, STARTING = code_blocks("docs/operations.md", "### Without a plan")
(SINGLE_HOST,) = code_blocks("docs/operations.md", "### Everything on one host")
WEBHOOK = (
    "BROKER_PIPELINE_WEBHOOK_URL=https://hooks.example.com/done "
    "BROKER_PIPELINE_WEBHOOK_SECRET_FILE=/secrets/webhook.secret"
)
BLOCKS = {"0:18": "0:2", "18:27": "2:3", "27:": "3:"}
"""The page's model has 36 layers, the demo's 5."""
_AT_A_HOST = re.compile(r"^ *([\w-]+)\$ +(docker compose .*)$", re.MULTILINE)
PICTURES = {
    f"{number}-{scene.path.name}": (scene.path.read_bytes() + bytes([number]), scene.expected)
    for number in range(4)
    for scene in scenes()
}
"""The demo's scenes, each some times: what stands after a picture's end makes it another file. With captions."""


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


async def caption(page: FollowedPage, name: str) -> None:
    """Caption the pictures as the page does, and hold what comes against what they show."""
    out = page.directory / f"{name}.jsonl"
    await page.type_here(CAPTIONING.replace("captions.jsonl", f"{out} --temperature 0 --again --patience-s 60"))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    said = {Path(line["path"]).name: line["caption"] for line in lines}
    assert said == {name: expected for name, (_, expected) in PICTURES.items()}


@asynccontextmanager
async def captions_going_on(page: FollowedPage) -> AsyncIterator[list[float]]:
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


def rights_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process: users, capabilities, whether it may gain any."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: facts[name] for name in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "NoNewPrivs")}


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


async def start_as_planned(page: FollowedPage, said: str) -> dict[str, str]:
    """Type what `plan` printed, with the page between its parts; return what each host runs, by the compose files."""
    here, there = said.split("and on the hosts", 1)
    await page.type_here("\n".join(re.findall(r"^  (broker-pipeline .*)$", here, re.MULTILINE)))
    await page.type_here(COPYING)
    starts = _AT_A_HOST.findall(there)
    for host, command in starts:
        await page.type_on(host, command)
        if host == "broker":
            for other, start in starts:
                await examine(page, other, start)
    return {Path(command.split()[5]).name.removesuffix(".env"): host for host, command in starts}


async def examine(page: FollowedPage, host: str, start: str) -> None:
    """Ask the doctor about a host before anything runs there, as the page does."""
    service = {"stage": "stage", "vision": "vision", "gateway": "conductor"}.get(Path(start.split()[3]).stem)
    if service is not None:
        ((_, command),) = _AT_A_HOST.findall(EXAMINING)
        asked = start.replace("up -d --wait", command[command.index("run --rm") :].replace(" stage ", f" {service} "))
        said = await page.type_on(host, asked)
        assert "0 to mend" in said


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
    memory_gb = {"eyes": 0.0088, "gpu-a": 0.007, "gpu-b": 0.0055}  # the tower fits one, and all layers none with KV
    planning = PLANNING
    for name, size in memory_gb.items():
        planning = planning.replace(f'probe = "{name}.json"', f'devices = [{{ name = "cpu", memory_gb = {size} }}]')
    async with followed_page(tmp_path, HOSTS, {}) as page:
        runs = await start_as_planned(page, await page.type_here(planning))
        assert {name: runs[name] for name in runs if "-" in name} == {
            "stage-0": "gpu-a",
            "stage-1": "gpu-b",
            "vision-0": "eyes",
        }
        for host in ("gpu-a", "gpu-b", "eyes"):
            (container,) = page.containers[host]
            assert container.service["runtime"] == "runc"
            assert container.service["mem_limit"] == f"{2048 + int(memory_gb[host] * 1e9) // 2**20}m"
        await caption(page, "cut")


async def test_hosts_without_a_plan_and_an_upgrade(tmp_path: Path) -> None:
    await prepare(tmp_path)
    async with followed_page(tmp_path, HOSTS, BLOCKS) as page:
        await page.type_here(BY_HAND)
        await page.type_here(COPYING)
        for host, command in _AT_A_HOST.findall(STARTING):
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
    nobody = "\t".join(["10001"] * 4)
    for container in page.everything:
        assert container.process is not None
        rights = rights_of(container.process.pid)
        assert rights.pop("Groups").strip() in ("", "10001")
        none = "0" * 16
        assert rights == {
            "Uid": nobody,
            "Gid": nobody,
            "CapPrm": none,
            "CapEff": none,
            "CapBnd": none,
            "NoNewPrivs": "1",
        }
        for path in ("/new", "/usr/new", "/secrets/new", "/etc/broker-pipeline/new", "/artifacts/new"):
            assert await container.run("/usr/bin/touch", path) != 0, f"{container.name}: {path}"


async def check_that_doors_are_shut(page: FollowedPage) -> None:
    """For a stranger who reaches all ports, encrypts, and has no secret."""
    encrypted = ssl.create_default_context()
    encrypted.check_hostname, encrypted.verify_mode = False, ssl.CERT_NONE
    open_ports = {host: listening(page, host) for host in HOSTS}
    workers = {port for host in ("eyes", "gpu-a", "gpu-b") for port in open_ports[host]}
    assert (open_ports["broker"], open_ports["front"]) == ({4222, 6379}, {8080})
    assert len(workers) >= 1
    assert workers <= set(range(7400, 7416))
    with page.lab.entered(0):
        with pytest.raises((nats.errors.Error, OSError)):
            await nats.connect(f"tls://{page.lab.address(1)}:4222", tls=encrypted, allow_reconnect=False)
        async with redis.asyncio.Redis(host=page.lab.address(1), ssl=True, ssl_cert_reqs="none") as client:
            with pytest.raises(redis.exceptions.RedisError):
                await client.get("anything")
        async with aiohttp.ClientSession() as http:
            for path in ("/v1/jobs", "/v1/status", "/v1/models", "/metrics"):
                async with http.get(f"http://{page.lab.address(2)}:8080{path}") as answer:
                    assert answer.status == 401, path
        for number, host in enumerate(HOSTS[2:], 3):
            for port in open_ports[host]:
                with pytest.raises((OSError, asyncio.IncompleteReadError)):
                    await first_byte_from(page.lab.address(number), port, encrypted)


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
