"""Hosts on which a page is followed: what people type on their own machine, and `docker compose up` on each host.

`ssh`, `rsync` and paths below /srv reach a folder for each host, since all share one file system; addresses are those
that hosts have here. Everything else is the page's own text. Hosts are network namespaces, of which the own machine is
the hub; `engine.py` has others.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.documents import ROOT
from tests.kit.hosts.compose_file import load_project, read_env_file
from tests.kit.hosts.container import Container
from tests.kit.running.netlab import LinkShape, Netlab, netlab

_DOCKER_RUN = 'docker() { while [[ $1 != broker-pipeline:* ]]; do shift; done; shift; broker-pipeline "$@"; }'
_REMOTE = r"""
ssh() { local at="$HOSTS/${1#root@}"; shift; "${@//\/srv\//$at/srv/}"; }
rsync() {
  local owner="" from to at
  while [[ $1 == -* ]]; do [[ $1 != --chown=* ]] || owner=${1#--chown=}; shift; done
  from=$1 to=${2#root@}; at="$HOSTS/${to/:/}"
  mkdir -p "$at"; cp -a "$from." "$at"
  [[ -z $owner ]] || chown -R "$owner" "$at"
}
"""


@dataclass
class Page(ABC):
    """A page, and where it is followed."""

    names: Sequence[str]
    """Of hosts, as on the page; the first has the first address there."""
    directory: Path
    changes: Mapping[str, str]
    """What else of the page's text is other here."""

    @abstractmethod
    def address(self, host: int) -> str:
        """Return the address of a host, numbered from 1."""

    @abstractmethod
    def own_machine(self, script: str) -> list[str]:
        """Return the command line that runs a script on one's own machine."""

    @abstractmethod
    async def type_on(self, host: str, command: str) -> str:
        """Type `docker compose -f FILE --env-file ENV …` on a host; return what is said."""

    async def type_here(self, script: str) -> str:
        """Run what the page has people type on their own machine; return what it says."""
        return await said_by(
            self.own_machine(f"set -euo pipefail\n{_REMOTE}\n{self._moved(script)}"),
            cwd=self.directory,
            env={**os.environ, "HOSTS": str(self.directory), "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        )

    def _moved(self, script: str) -> str:
        for text, ours in self.changes.items():
            script = script.replace(text, ours)
        for number, _ in enumerate(self.names, 1):
            script = script.replace(f"10.0.0.{number}", self.address(number))
        return script

    def _at(self, host: str, path: str) -> str:
        return f"{self.directory}/{host}{path}" if path.startswith("/srv/") else path


async def said_by(command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command, which has to end well, and return what it says."""
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode == 0, f"{shlex.join(command)}: {said.decode()}"
    return said.decode()


@dataclass
class FollowedPage(Page):
    """What runs where on namespaces."""

    lab: Netlab
    containers: dict[str, list[Container]] = field(default_factory=dict)

    @property
    def everything(self) -> list[Container]:
        """Return all containers, in the order of the page."""
        return [container for of_host in self.containers.values() for container in of_host]

    def address(self, host: int) -> str:
        return self.lab.address(host)

    def own_machine(self, script: str) -> list[str]:
        return self.lab.inside(0, ["bash", "-c", f"{_DOCKER_RUN}\n{script}"])

    async def type_on(self, host: str, command: str) -> str:
        """Do on a host what `docker compose -f FILE --env-file ENV` does with `up -d --wait`, or `run --rm SERVICE …`.

        Returns what is said by what `run` runs, which has to end well.
        """
        _, _, _, file, _, env_file, *rest = shlex.split(command)
        env = read_env_file(self.directory / self._at(host, env_file))
        project = load_project(ROOT / file, {name: self._at(host, value) for name, value in env.items()})
        number = self.names.index(host) + 1
        if rest[:2] == ["run", "--rm"]:
            service = project.services[rest[2]] | {"command": rest[3:]}
            return await Container(self.lab, number, f"{project.name}-run", service, self.directory).run_to_its_end()
        assert rest == ["up", "-d", "--wait"]
        for name, service in project.services.items():
            container = Container(self.lab, number, f"{project.name}-{name}", service, self.directory)
            self.containers.setdefault(host, []).append(container)
            await container.start()
        return ""


@asynccontextmanager
async def followed_page(
    directory: Path, names: Sequence[str], changes: Mapping[str, str]
) -> AsyncIterator[FollowedPage]:
    """Have hosts by these names, 1 Gbit/s and 1 ms from the hub each, while the context is open."""
    with netlab(len(names), LinkShape(rate_mbit=1000.0, delay_s=0.001)) as lab:
        page = FollowedPage(names, directory, changes, lab)
        try:
            yield page
        finally:
            started = [container.process for container in page.everything if container.process is not None]
            await asyncio.gather(*(process.destroy() for process in started))
