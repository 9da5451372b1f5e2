"""What a device is and can do: its identity, its free memory, its streams, whether it still computes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.messages.workers import PROCESSOR_PREFIX
from broker_pipeline.process.compiler import has_compiler
from broker_pipeline.process.memory_limit import left_bytes

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def limit_memory(device: torch.device, memory_gb: float | None) -> None:
    """Take a GPU for one of `memory_gb` (10**9 bytes) in this process; None takes it as it is.

    What others hold of the GPU counts as it would on the smaller one. torch's allocator gives this process no more.

    Raises:
        ConfigurationError: the device is no GPU, or has less.
    """
    if memory_gb is None:
        return
    if device.type != "cuda":
        raise ConfigurationError(f"--gpu-memory-gb has no effect on {device}: leave it out", field="gpu_memory_gb")
    total_gb = torch.cuda.get_device_properties(device).total_memory / 1e9
    if memory_gb > total_gb:
        raise ConfigurationError(
            f"--gpu-memory-gb {memory_gb:g}: {device} has {total_gb:.1f} GB", field="gpu_memory_gb"
        )
    torch.cuda.set_per_process_memory_fraction(memory_gb / total_gb, device)


def gpu_memory(device: torch.device) -> tuple[int, int]:
    """Return the free bytes of a GPU and all it has, both less what `limit_memory` leaves out."""
    free, total = torch.cuda.mem_get_info(device)
    limit = round(total * torch.cuda.get_per_process_memory_fraction(device))
    return max(0, free - (total - limit)), limit


def at_most_share(num_bytes: int, share: float, device: torch.device) -> int:
    """Return `num_bytes`, or the `share` of a GPU's memory where that is less."""
    return min(num_bytes, int(share * gpu_memory(device)[1])) if device.type == "cuda" else num_bytes


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can still be allocated on a device."""
    if device.type == "cuda":
        return gpu_memory(device)[0]
    return int(min(_available_memory_bytes(Path("/proc/meminfo")), left_bytes()))


def device_identity(device: torch.device) -> str:
    """Return a name of this very GPU, or of this machine's processor, that no other has; empty where there is none.

    Host names will not do: containers on one machine have different ones, and strangers may have the same.
    """
    if device.type == "cuda":
        return f"gpu-{torch.cuda.get_device_properties(device).uuid}"
    return f"{PROCESSOR_PREFIX}{_BOOT_ID.read_text().strip()}" if _BOOT_ID.is_file() else ""


def device_slots(device: torch.device) -> int:
    """Return how many workers like this one the device computes for at a time, none of them slowed by the others."""
    if device.type == "cuda":
        return 1
    return max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads())


def use_threads(num_threads: int | None, device: torch.device) -> None:
    """Let every operation on the host take `num_threads`; None is one where a GPU does the work, and torch's elsewhere.

    Alongside a GPU the host only copies. More threads make that little faster, and spin on their cores until the next
    copy. For the whole process: a thread takes the number over with its first operation, so call it before any.
    """
    if num_threads is not None or device.type == "cuda":
        torch.set_num_threads(num_threads or 1)


def require_compiler() -> None:
    """Raise ConfigurationError where Triton, which builds the launchers of kernels here, would find no C compiler."""
    if not has_compiler():
        raise ConfigurationError(
            "kernels for a GPU are built on this host, which has no C compiler: install gcc, name one in CC, "
            "or use --attention sdpa",
            field="attention",
        )


def use_own_stream(device: torch.device, priority: int = -1) -> None:
    """Let the calling thread's work on a GPU pass that of others: of two streams the one with less is served first."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=priority))


def is_alive(device: torch.device) -> bool:
    """Say whether a device can still compute; after some CUDA errors no call of the process ever succeeds again."""
    if device.type == "cpu":
        return True
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return False
    return True


def _available_memory_bytes(meminfo: Path) -> int:
    """Read Linux's own estimate; where there is none, assume 4 GiB rather than guess high."""
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 * 2**30
