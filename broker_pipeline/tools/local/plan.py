"""What `LocalCluster` runs: the command line of every service, decided from the settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker_pipeline.client.operator_token import FILE_NAME
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.tools.local.gpus.devices import assign_devices, computes_on_gpu, threads_per_worker

_SHARED_GPU = 0.6  # of what is free on a GPU, for the KV of all stages on it together


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """What to run. `stages` may overlap: two stages with the same blocks are two routes."""

    model: Path
    stages: tuple[BlockRange, ...]
    data_dir: Path
    shares: tuple[str, ...] = ()
    """Of each stage, which is what conductors divide among themselves; without any they are one."""
    num_vision_workers: int = 1
    vision_stages: tuple[int, ...] = ()
    """Stages, by index, whose process is a vision worker as well; `num_vision_workers` come on top of those."""
    is_vision_beside: bool = False
    """Whether each vision worker has the device of the stage of its number, not one of its own."""
    num_gateways: int = 1
    num_gateway_processes: int = 1
    """Processes of each gateway, on its port."""
    num_conductors: int = 1
    is_insecure: bool = False
    """Whether others who reach the gateway may use it while there are no keys."""
    host: str = "127.0.0.1"
    port: int = 0
    """Port of the first gateway, the others' follow; 0 takes free ones and keeps them across restarts."""
    nats_url: str | None = None
    nats_replicas: int = 1
    """Servers of the NATS cluster at `nats_url` that keep each stream."""
    redis_url: str | None = None
    secrets: Path | None = None
    """Folder of this host's secrets, for servers that are there already; those of our own have some of their own."""
    namespace: str = "bp"
    pipeline: str = "main"
    num_cuda_devices: int = 0
    device: str | None = None
    """Device of every worker; None assigns the CUDA devices round-robin, or takes the CPU."""
    dtype: str | None = None
    is_deterministic: bool | None = None
    """Whether what becomes of a session must not depend on what shares its batches; None leaves it to the workers."""
    verify_weights: bool = True
    """Whether workers compare weights with the artifact's hashes while they read them."""
    edge_flags: Mapping[str, object] = field(default_factory=dict)
    """The workers' flags about edges (`EDGE_OPTIONS`); what is left out, or None, is left to them."""
    num_threads: int | None = None
    """Threads of each worker; None is one where GPUs do the work, and shares the cores out elsewhere."""
    kv_tokens: int | None = None
    kv_dtype: str = "auto"
    """What stages hold keys and values in: `auto` or `fp8`."""
    gpu_memory_gb: float | None = None
    """GB (10**9 bytes) that every GPU counts as having; None: all it has."""
    on_other_model: str = "restart"
    """What becomes of jobs with tokens of another model: `restart`, or `fail`."""
    default_max_tokens: int | None = None
    """Output limit of jobs that ask for none; None leaves it to the conductor."""
    drain_s: float = 10.0
    log_level: str = "info"
    profile: Path | None = None
    """Directory for a trace of every service; None for none."""
    otlp_endpoint: str = ""
    """OpenTelemetry collector that every service sends traces to; empty for none."""
    media_roots: tuple[str, ...] = ()
    restarts: bool = True
    """Whether a program that dies is started again by itself."""
    start_timeout_s: float = 600.0
    """Loading a large model takes minutes."""
    worker_env: Mapping[str, str] = field(default_factory=dict)
    """Environment of stages and vision workers, on top of this process's own."""
    extra_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further flags by command: `gateway`, `conductor`, `vision`, `stage`."""

    @property
    def services(self) -> tuple[str, ...]:
        """Names of our own services, in the order in which they are shown."""
        counts = {
            "gateway": self.num_gateways,
            "conductor": self.num_conductors,
            "vision": self.num_vision_workers,
            "stage": len(self.stages),
        }
        return tuple(f"{role}-{index}" for role, count in counts.items() for index in range(count))


@dataclass(frozen=True, slots=True)
class PlannedService:
    """One service: its name, what it is for in a few words, and what follows `broker-pipeline`."""

    name: str
    what: str
    arguments: tuple[str, ...]


def role_of(name: str) -> str:
    """Return the role in a program's name: `stage` of `stage-0`."""
    return name.partition("-")[0]


def plan_services(
    settings: LocalSettings,
    *,
    nats_url: str,
    redis_url: str,
    addresses: Mapping[str, tuple[str, int]],
    secrets: Path | None = None,
) -> list[PlannedService]:
    """Return every service in the order in which they are shown; `addresses` has host and port of each gateway."""
    common = {
        "--nats-url": nats_url,
        "--nats-replicas": settings.nats_replicas,
        "--redis-url": redis_url,
        "--secrets": secrets,
        "--namespace": settings.namespace,
        "--pipeline": settings.pipeline,
        "--drain-s": settings.drain_s,
        "--log-level": settings.log_level,
        "--log-format": "json",
        "--profile": settings.profile,
        "--otlp-endpoint": settings.otlp_endpoint or None,
        "--media-roots": settings.media_roots,
    }
    planned = []
    for name in settings.services:
        command = role_of(name)
        what, own = _own_flags(settings, name, addresses)
        extra = settings.extra_arguments.get(command, ())
        planned.append(PlannedService(name, what, (command, *_flags(own), *extra, *_flags(common))))
    return planned


def num_threads(settings: LocalSettings) -> int:
    """Return how many threads each worker computes with: more than one would only spin alongside a GPU."""
    if settings.num_threads is not None:
        return settings.num_threads
    if computes_on_gpu(settings.num_cuda_devices, settings.device):
        return 1
    return threads_per_worker(len(settings.stages) + settings.num_vision_workers + len(settings.vision_stages))


def _own_flags(
    settings: LocalSettings, name: str, addresses: Mapping[str, tuple[str, int]]
) -> tuple[str, dict[str, object]]:
    """Return what a service is for, and the flags that it alone has."""
    devices = _devices(settings)
    match role_of(name):
        case "gateway":
            host, port = addresses[name]
            count = settings.num_gateway_processes
            what = f"HTTP, {count} processes" if count > 1 else "HTTP"
            token = settings.data_dir.absolute() / FILE_NAME
            own = {"--operator-token-file": token, "--insecure": settings.is_insecure}
            return what, {"--host": host, "--port": port, "--processes": count, **own}
        case "conductor":
            flags = {"--on-other-model": settings.on_other_model, "--default-max-tokens": settings.default_max_tokens}
            return "schedules", {"--model": settings.model, **flags}
        case "vision":
            return f"pictures, {devices[name]}", _worker_flags(settings, name, devices)
        case _:
            return _stage(settings, name, devices)


def _stage(settings: LocalSettings, name: str, devices: Mapping[str, str]) -> tuple[str, dict[str, object]]:
    index = int(name.partition("-")[2])
    blocks, has_vision = settings.stages[index], index in settings.vision_stages
    own = {
        "--blocks": f"{blocks.start}:{blocks.stop}",
        "--kv-tokens": settings.kv_tokens,
        "--kv-dtype": settings.kv_dtype,
        "--kv-share": _kv_share(name, devices) if settings.kv_tokens is None else None,
        "--vision": has_vision,
        "--share": settings.shares[index] or None if settings.shares else None,
    }
    what = f"layers {blocks.start}:{blocks.stop}{' and pictures' if has_vision else ''}, {devices[name]}"
    return what, _worker_flags(settings, name, devices) | own


def _worker_flags(settings: LocalSettings, name: str, devices: Mapping[str, str]) -> dict[str, object]:
    return {
        "--model": settings.model,
        "--name": name,
        "--device": devices[name],
        "--dtype": settings.dtype,
        "--deterministic": settings.is_deterministic,
        "--no-deterministic": settings.is_deterministic is False,
        "--no-verify-weights": not settings.verify_weights,
        "--gpu-memory-gb": settings.gpu_memory_gb,
        "--threads": num_threads(settings),
        **settings.edge_flags,
    }


def _devices(settings: LocalSettings) -> dict[str, str]:
    """Assign devices to stages first, so that each has its own where there are enough."""
    stages, vision = ([name for name in settings.services if role_of(name) == role] for role in ("stage", "vision"))
    assigned = assign_devices(len(stages) + len(vision), settings.num_cuda_devices)
    encoding = assigned if settings.is_vision_beside else assigned[len(stages) :]
    pairs = (*zip(stages, assigned, strict=False), *zip(vision, encoding, strict=False))
    return {name: settings.device or device for name, device in pairs}


def _kv_share(name: str, devices: Mapping[str, str]) -> float | None:
    """Return the part of its GPU's free memory that a stage may fill when others load onto the GPU alongside it.

    Each may look before the others have taken theirs, so the parts together have to leave room for all weights. A tower
    is small, and has no KV.
    """
    sharers = [other for other, device in devices.items() if device == devices[name]]
    if len(sharers) == 1 or not devices[name].startswith("cuda"):
        return None
    return round(_SHARED_GPU / sum(role_of(other) == "stage" for other in sharers), 3)


def _flags(values: Mapping[str, object]) -> Iterator[str]:
    """Yield the words of a command line; True is a flag alone, False and None are none, a tuple repeats its flag."""
    for flag, value in values.items():
        if value is True:
            yield flag
        elif isinstance(value, tuple):
            yield from (word for each in value for word in (flag, str(each)))
        elif value is not None and value is not False:
            yield from (flag, str(value))
