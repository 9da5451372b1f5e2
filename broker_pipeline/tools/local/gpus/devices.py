"""Which CUDA devices this machine has, asked without importing torch here, and how CPU cores are shared out."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys

_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
_TIMEOUT_S = 60.0


async def count_cuda_devices() -> int:
    """Return how many CUDA devices torch would see; 0 without asking where there is no NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return 0
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _COUNT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return int(output) if process.returncode == 0 else 0


def assign_devices(num_workers: int, num_cuda_devices: int) -> list[str]:
    """Assign CUDA devices to workers round-robin; without one, all compute on the CPU."""
    if num_cuda_devices == 0:
        return ["cpu"] * num_workers
    return [f"cuda:{worker % num_cuda_devices}" for worker in range(num_workers)]


def vision_shares_gpu(num_stages: int, num_vision_workers: int, num_cuda_devices: int, device: str | None) -> bool:
    """Say whether a vision worker would compute on the GPU of the first stage; `device` is everyone's, if given."""
    if device is not None:
        is_gpu = device.startswith("cuda") or (device == "auto" and num_cuda_devices > 0)
        return is_gpu and num_vision_workers > 0
    assigned = assign_devices(num_stages + num_vision_workers, num_cuda_devices)
    return assigned[0] != "cpu" and assigned[0] in assigned[num_stages:]


def threads_per_worker(num_workers: int) -> int:
    """Return an equal share of the cores that this process may use, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // num_workers)
