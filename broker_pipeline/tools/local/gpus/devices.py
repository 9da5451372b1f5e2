"""Which CUDA devices this machine has, asked without importing torch here, and how CPU cores are shared out."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Sequence

import msgspec

from broker_pipeline.errors import ConfigurationError

_LIST = """
import json, sys, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
facts = []
for index in range(count):
    each = torch.cuda.get_device_properties(index)
    free, _ = torch.cuda.mem_get_info(index) if "--free" in sys.argv else (0, 0)
    facts.append({"name": each.name, "memory_bytes": each.total_memory, "free_bytes": free,
                  "capability": f"{each.major}.{each.minor}"})
print(json.dumps(facts))
"""
_TIMEOUT_S = 60.0
_FP8_CAPABILITY = (8, 9)
_DEVICE = re.compile(r"auto|cpu|cuda(?::(?P<index>0|[1-9][0-9]*))?")


class CudaDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU as its driver describes it."""

    name: str
    memory_bytes: int
    free_bytes: int = 0
    """Where that was asked for."""
    capability: str = ""
    """CUDA's compute capability, such as 9.0."""


def without_fp8(gpus: Sequence[CudaDevice]) -> CudaDevice | None:
    """Return one that has no FP8, as GPUs before Ada and Hopper; unknown ones may have it."""
    known = [gpu for gpu in gpus if gpu.capability]
    return next((gpu for gpu in known if tuple(map(int, gpu.capability.split("."))) < _FP8_CAPABILITY), None)


async def cuda_devices(device: str | None = None, *, with_free: bool = False) -> tuple[CudaDevice, ...]:
    """Return the CUDA devices that torch would see; none, without asking, where nothing speaks for one.

    What speaks for one is NVIDIA's driver, or a `device` of that kind that somebody named. To say what is `free`, each
    device is initialised, which takes a while and some of its memory meanwhile.
    """
    if shutil.which("nvidia-smi") is None and not (device or "").startswith("cuda"):
        return ()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LIST, *(["--free"] if with_free else [])),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return ()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return msgspec.json.decode(output, type=tuple[CudaDevice, ...]) if process.returncode == 0 else ()


def check_device(device: str, num_cuda_devices: int) -> None:
    """Raise `ConfigurationError` for a device that is none, or is not here."""
    here = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(num_cuda_devices))])
    named = _DEVICE.fullmatch(device)
    if named is None:
        raise ConfigurationError(f"{device!r} is no device; here are {here}", field="device")
    if device.startswith("cuda") and int(named["index"] or 0) >= num_cuda_devices:
        raise ConfigurationError(f"{device!r} is not on this machine; here are {here}", field="device")


def with_memory(gpus: Sequence[CudaDevice], memory_gb: float | None) -> tuple[CudaDevice, ...]:
    """Return the GPUs as if each had `memory_gb` (10**9 bytes); None leaves them as they are.

    Raises `ConfigurationError` where there are none, or one has less.
    """
    if memory_gb is None:
        return tuple(gpus)
    if not gpus:
        raise ConfigurationError("--gpu-memory-gb has no effect without GPUs: leave it out", field="gpu_memory_gb")
    if (smallest := min(gpus, key=lambda each: each.memory_bytes)).memory_bytes < memory_gb * 1e9:
        raise ConfigurationError(
            f"--gpu-memory-gb {memory_gb:g}: {smallest.name} has {smallest.memory_bytes / 1e9:.1f} GB",
            field="gpu_memory_gb",
        )
    return tuple(msgspec.structs.replace(each, memory_bytes=round(memory_gb * 1e9)) for each in gpus)


def assign_devices(num_workers: int, num_cuda_devices: int) -> list[str]:
    """Assign CUDA devices to workers round-robin; without one, all compute on the CPU."""
    if num_cuda_devices == 0:
        return ["cpu"] * num_workers
    return [f"cuda:{worker % num_cuda_devices}" for worker in range(num_workers)]


def computes_on_gpu(num_cuda_devices: int, device: str | None) -> bool:
    """Say whether workers compute on a GPU; `device` is everyone's, if given."""
    return num_cuda_devices > 0 if device in {None, "auto"} else str(device).startswith("cuda")


def threads_per_worker(num_workers: int) -> int:
    """Return an equal share of the cores that this process may use, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // num_workers)
