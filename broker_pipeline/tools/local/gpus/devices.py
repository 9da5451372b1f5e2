"""Which CUDA devices this machine has, asked without importing torch here, and how CPU cores are shared out."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys

import msgspec

_LIST = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
facts = map(torch.cuda.get_device_properties, range(count))
print(json.dumps([{"name": each.name, "memory_bytes": each.total_memory} for each in facts]))
"""
_TIMEOUT_S = 60.0


class CudaDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU as its driver describes it."""

    name: str
    memory_bytes: int


async def cuda_devices() -> tuple[CudaDevice, ...]:
    """Return the CUDA devices that torch would see; none, without asking, where there is no NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return ()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LIST, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
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


def assign_devices(num_workers: int, num_cuda_devices: int) -> list[str]:
    """Assign CUDA devices to workers round-robin; without one, all compute on the CPU."""
    if num_cuda_devices == 0:
        return ["cpu"] * num_workers
    return [f"cuda:{worker % num_cuda_devices}" for worker in range(num_workers)]


def threads_per_worker(num_workers: int) -> int:
    """Return an equal share of the cores that this process may use, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // num_workers)
