"""Hosts that are one Docker Engine: `docker compose` is the real one, with a folder and an address for each host.

An address is that of a network of the engine, which reaches this machine, and so the ports that containers publish.
The engine has to be on this machine: volumes are folders of it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kit.documents import ROOT
from tests.kit.hosts.page import Page, said_by


@dataclass
class EnginePage(Page):
    """What was started on which host."""

    addresses: Sequence[str]
    projects: list[Project] = field(default_factory=list)

    def address(self, host: int) -> str:
        return self.addresses[host - 1]

    def own_machine(self, script: str) -> list[str]:
        return ["bash", "-c", script]

    async def type_on(self, host: str, command: str) -> str:
        *compose, env_file, rest = command.split(maxsplit=6)
        moved = self.directory / f"{host}-{Path(env_file).name}"
        text = self._here(host, (self.directory / self._at(host, env_file)).read_text())
        moved.write_text(f"{text}BROKER_PIPELINE_THREADS=1\n")  # all hosts share this one's cores
        project = Project(host, (*compose, str(moved)))
        if rest.startswith("up") and project not in self.projects:
            self.projects.append(project)
        return await project.run(rest)

    def _here(self, host: str, text: str) -> str:
        return text.replace("=/srv/", f"={self.directory}/{host}/srv/")


@dataclass(frozen=True)
class Project:
    """A compose project with its env file, on a host."""

    host: str
    compose: tuple[str, ...]

    async def run(self, words: str) -> str:
        """Run a command of `docker compose`, which has to end well; return what it says."""
        return await said_by([*self.compose, *shlex.split(words)], cwd=ROOT)

    async def containers(self) -> list[dict[str, Any]]:
        """Return what the engine says of each container, stopped ones too."""
        ids = (await self.run("ps -aq")).split()
        found: list[dict[str, Any]] = json.loads(await docker("inspect", *ids))
        return found


async def docker(*words: str) -> str:
    """Run a command of `docker`, which has to end well; return what it says."""
    return await said_by(["docker", *words], cwd=ROOT)


def why_no_engine() -> str:
    """Return why there is no engine to test with, or nothing."""
    if "DOCKER_HOST" not in os.environ or os.geteuid() != 0:
        return "needs root, and DOCKER_HOST: the socket of a Docker Engine on this machine that runs no pipeline"
    try:
        asked = subprocess.run(["docker", "compose", "ls", "-a"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "docker is not installed"
    if asked.returncode != 0:
        return f"no Docker Engine at {os.environ['DOCKER_HOST']}: {asked.stderr.strip().splitlines()[0]}"
    return "the engine of DOCKER_HOST runs a pipeline already" if "broker-pipeline" in asked.stdout else ""


@asynccontextmanager
async def engine_page(directory: Path, names: Sequence[str], changes: Mapping[str, str]) -> AsyncIterator[EnginePage]:
    """Have hosts by these names while the context is open."""
    networks = [f"{directory.name}-{name}" for name in names]
    page = EnginePage(names, directory, changes, [])
    try:
        addresses = []
        for network in networks:
            await docker("network", "create", network)
            (place,) = json.loads(await docker("network", "inspect", network))[0]["IPAM"]["Config"]
            addresses.append(place["Gateway"])
        page.addresses = addresses
        yield page
    finally:
        for project in page.projects:
            await project.run("down --volumes --timeout 1")
        await docker("network", "rm", "--force", *networks)
