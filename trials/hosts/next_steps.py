"""What to type once env files are written: on one's own machine, and then on each host."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from trials.hosts.env_files import Variables
from trials.hosts.hosts_file import HostEntry


def commands_here(
    roles: Mapping[HostEntry, Sequence[str]], files: Mapping[str, Variables], artifact: str
) -> Iterator[str]:
    """Yield the commands that make each host's secrets, and its part of the artifact as `parts/HOST`."""
    for host, names in roles.items():
        flags = " ".join(f"--role {name}" for name in names)
        yield f"broker-pipeline secrets add-host secrets {host.name} {flags} --address {host.address}"
    for host in roles:
        parts = [_part(name, files[name]) for name in files if name.startswith(f"{host.name}/")]
        flags = " ".join(dict.fromkeys(word for part in parts for word in part))
        yield f"broker-pipeline fetch {flags} {shlex.quote(artifact)} parts/{host.name}"


def commands_there(files: Mapping[str, Variables]) -> Iterator[tuple[str, str]]:
    """Yield each host with a command that starts something there, the broker first."""
    for path, variables in files.items():
        host, name = path.split("/")
        folder = PurePosixPath(variables.get("SERVER_SECRETS") or variables["SECRETS"]).parent
        compose = f"docker compose -f compose/{_kind(name)}.yaml --env-file {folder / name}"
        yield host, f"{compose} up -d --wait"


def _part(path: str, variables: Variables) -> list[str]:
    """Return which part of an artifact a service reads, as flags of `fetch`."""
    kind = _kind(PurePosixPath(path).name)
    if kind != "stage":
        return {"vision": ["--vision"], "gateway": ["--role conductor"]}.get(kind, [])
    return [f"--blocks {variables['BLOCKS']}", *["--vision"] * ("BROKER_PIPELINE_VISION" in variables)]


def _kind(file_name: str) -> str:
    """Return which of compose/*.yaml an env file is for: `stage` for `stage-0.env`."""
    return file_name.removesuffix(".env").split("-")[0]
