"""The env files of every host, one for each compose project there, as compose/*.yaml reads them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.devices import Device
from broker_pipeline.planning.fleet.fleet import FleetPlan
from broker_pipeline.planning.planner import Plan
from broker_pipeline.tools.local.layouts import conductor_settings
from trials.hosts.described import DescribedHosts
from trials.hosts.hosts_file import HostEntry

Variables = Mapping[str, str]
_PROCESS_BYTES = 2 * 2**30
"""Python, torch and the rings of edges, beside what the plan has put into a processor's memory."""


def env_files(described: DescribedHosts, found: FleetPlan, *, kv_in_fp8: bool = False) -> dict[str, Variables]:
    """Return the variables of each file, by its path: `gpu-1/stage-0.env`."""
    hosts, network = described.file.hosts, found.fleet.network
    broker, gateway = hosts[network.broker], hosts[network.gateway]
    common = [{"BROKER_HOST": broker.address, "ARTIFACTS": host.artifacts, "SECRETS": host.secrets} for host in hosts]
    files: dict[str, Variables] = {
        f"{broker.name}/broker.env": {"SERVER_SECRETS": broker.server_secrets, "DATA": broker.data},
        f"{gateway.name}/gateway.env": common[network.gateway] | _gateway(found.plan),
    }
    for number, slot in enumerate(found.slots):
        name, settings = _worker(found.plan, number, kv_in_fp8=kv_in_fp8)
        device = _device(described.names[slot.host][slot.device], found.fleet.device(slot))
        files[f"{hosts[slot.host].name}/{name}.env"] = common[slot.host] | {"WORKER": name} | settings | device
    return files


def _gateway(plan: Plan) -> dict[str, str]:
    settings = {name.upper().replace("-", "_"): value for name, value in conductor_settings(plan).items()}
    return {"GATEWAY_PROCESSES": str(plan.num_gateways)} | {f"BROKER_PIPELINE_{k}": v for k, v in settings.items()}


def _worker(plan: Plan, number: int, *, kv_in_fp8: bool) -> tuple[str, dict[str, str]]:
    """Return a worker's name and what it does."""
    stages = plan.layout.stages
    if number >= len(stages):
        return f"vision-{number - len(stages)}", {}
    settings = {"BLOCKS": f"{stages[number].start}:{stages[number].stop}"}
    if kv_in_fp8:
        settings["BROKER_PIPELINE_KV_DTYPE"] = "fp8"
    if number in plan.layout.vision_stages:
        settings["BROKER_PIPELINE_VISION"] = "true"
    if share := plan.layout.shares(plan.num_conductors)[number]:
        settings["BROKER_PIPELINE_SHARE"] = share
    return f"stage-{number}", settings


def _device(name: str, device: Device) -> dict[str, str]:
    if device.is_gpu:
        return {"GPU": name.removeprefix("cuda:")}
    return {"CONTAINER_RUNTIME": "runc", "WORKER_MEMORY": f"{(device.memory_bytes + _PROCESS_BYTES) // 2**20}m"}


def roles_of(described: DescribedHosts, found: FleetPlan) -> dict[HostEntry, list[str]]:
    """Return which roles of the secrets each host needs; the broker's servers have theirs."""
    roles: dict[int, list[str]] = {found.fleet.network.gateway: ["gateway", "conductor"]}
    for number, slot in enumerate(found.slots):
        layout = found.plan.layout
        is_stage, encodes = number < len(layout.stages), number in layout.vision_stages
        for role in ["stage"] * is_stage + ["vision"] * (encodes or not is_stage):
            if role not in roles.setdefault(slot.host, []):
                roles[slot.host].append(role)
    return {described.file.hosts[host]: names for host, names in sorted(roles.items())}


def write_env_files(directory: Path, files: Mapping[str, Variables]) -> None:
    """Write all files into a directory that is not there yet, or is empty: all of them or none.

    Raises `ConfigurationError`.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} is there already and not empty: name another one", field="env")
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        for name, variables in files.items():
            path = part / name
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
        part.chmod(0o755 & ~_umask())
        part.replace(directory)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
