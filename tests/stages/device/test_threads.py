"""Threads that torch starts on the host: each would spin on a core of its own between two operations."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
