"""Whether a GPU can be used here: driver, torch, memory, capability, and the compiler that kernels need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from rich.filesize import decimal

from broker_pipeline.process.compiler import has_compiler
from broker_pipeline.tools.doctor.finding import Finding, fail, ok, warn
from broker_pipeline.tools.local.gpus.devices import CudaDevice, cuda_devices

_DRIVER = Path("/proc/driver/nvidia/version")
_BF16_CAPABILITY = (8, 0)
_TAKEN = 0.5


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What computes here."""

    torch: str | None
    """Its version; None where it is not installed."""
    driver: str
    """What NVIDIA's driver calls itself; empty without one."""
    devices: tuple[CudaDevice, ...]
    has_compiler: bool


async def look_at_device(device: str) -> DeviceFacts:
    """Ask torch, in a process of its own, for what it sees."""
    torch = metadata.version("torch") if util.find_spec("torch") else None
    devices = await cuda_devices(device, with_free=True) if torch else ()
    return DeviceFacts(torch, _driver(), devices, has_compiler())


def judge_device(facts: DeviceFacts, device: str, *, is_worker: bool) -> list[Finding]:
    """Say whether workers can compute; `device` is what they are started with, `auto` for a GPU where there is one."""
    if facts.torch is None:
        said = "torch is not installed"
        if is_worker or device != "auto":
            return [fail("device", said, "pip install 'broker-pipeline[worker]'")]
        return [ok("device", f"{said}: gateways and conductors need none")]
    if device == "cpu" or not (facts.devices or facts.driver or device.startswith("cuda")):
        return [ok("device", f"workers compute on the processor (torch {facts.torch})")]
    if not facts.devices:
        driver = facts.driver or "no NVIDIA driver"
        remedy = "install torch for CUDA and its driver; a container needs --gpus; see CUDA_VISIBLE_DEVICES"
        return [fail("device", f"torch {facts.torch} sees no GPU; {driver}", remedy)]
    found = [_judge_one(f"cuda:{index}", each) for index, each in enumerate(facts.devices)]
    return [*found, *_judge_driver_and_compiler(facts)]


def _judge_driver_and_compiler(facts: DeviceFacts) -> Sequence[Finding]:
    driver = ok("driver", f"{facts.driver or 'unknown'}, torch {facts.torch}")
    if facts.has_compiler:
        return driver, ok("compiler", "Triton finds a C compiler")
    remedy = "install gcc, name one in CC, or start workers with --attention sdpa"
    return driver, fail("compiler", "no C compiler, with which kernels are built here", remedy)


def _judge_one(name: str, device: CudaDevice) -> Finding:
    free = f"{decimal(device.free_bytes)} of {decimal(device.memory_bytes)} free"
    said = f"{name} {device.name}, {free}, capability {device.capability}"
    if tuple(map(int, device.capability.split("."))) < _BF16_CAPABILITY:
        return warn("device", f"{said}: no bfloat16", "start workers with --dtype float32 --attention sdpa")
    if device.free_bytes < _TAKEN * device.memory_bytes:
        return warn("device", said, "fine where workers run on it; else `nvidia-smi` says who has its memory")
    return ok("device", said)


def _driver() -> str:
    try:
        return _DRIVER.read_text().splitlines()[0].removeprefix("NVRM version: ").strip()
    except (OSError, IndexError):
        return ""
