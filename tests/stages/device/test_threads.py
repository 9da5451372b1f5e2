"""Threads that torch starts on the host: each would spin on a core of its own between two operations."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from stages.compute.launched import DeviceClock
from stages.device.host_copy import HostCopy

# A process of its own: torch's threads never end. The copy is what a stage does with hidden states that arrive.
_PROGRAM = """
import os
from concurrent.futures import ThreadPoolExecutor
import torch
from stages.device.hardware import use_threads

def copy():
    torch.empty(4_000_000).copy_(torch.ones(4_000_000)).add_(1)

use_threads({num_threads}, torch.device("{device}"))
pool = ThreadPoolExecutor(1)
pool.submit(str).result()
before = len(os.listdir("/proc/self/task"))
copy()
pool.submit(copy).result()
print(len(os.listdir("/proc/self/task")) - before)
"""


def num_started(device: str, num_threads: int | None) -> int:
    """Return how many threads torch starts for two copies on two threads, where it would by itself start some."""
    program = _PROGRAM.format(num_threads=num_threads, device=device)
    env = os.environ | {"OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize(
    ("device", "num_threads", "starts_some"),
    [("cuda", None, False), ("cuda:1", None, False), ("cuda", 2, True), ("cpu", 1, False), ("cpu", None, True)],
)
def test_alongside_a_gpu_torch_computes_on_the_threads_that_are_there(
    device: str, num_threads: int | None, starts_some: bool
) -> None:
    assert (num_started(device, num_threads) > 0) is starts_some


@pytest.mark.gpu
def test_whoever_waits_for_a_gpu_sleeps() -> None:
    device, stream = torch.device("cuda"), torch.cuda.Stream()
    DeviceClock(device).end()  # whatever begins with the first, as pinned memory does, for which the GPU has to be idle
    HostCopy(torch.ones(8, device=device), stream).wait()
    clock = DeviceClock(device)
    torch.cuda._sleep(600_000_000)  # cycles: about 0.3 s
    copy = HostCopy(torch.ones(8, device=device), stream)
    clock.end()
    wall_s, processor_s = time.perf_counter(), time.thread_time()
    clock.wait()
    copy.wait()
    wall_s, processor_s = time.perf_counter() - wall_s, time.thread_time() - processor_s
    assert wall_s > 0.1
    assert processor_s < 0.2 * wall_s
