"""The same work in one process: `python -m stages.bench.in_process ORDER.json ROUNDS.json`.

`broker-pipeline bench pipeline` runs this beside the whole system and compares the two.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from broker_pipeline.bench.cpu_time import CpuClock
from broker_pipeline.bench.work import InProcessOrder, Round, Work
from stages.bench.continuous import ContinuousBatch
from stages.compute.loading import ComputeOptions

_MARGIN_TOKENS = 1024  # of a session, beyond its output: the prompt with its picture


def run_order(order: InProcessOrder) -> list[Round]:
    """Warm up, then time every round."""
    torch.set_num_threads(order.num_threads)
    works = (order.warm_up, *order.rounds)
    kv_tokens = max(work.num_in_flight * (work.num_output_tokens + _MARGIN_TOKENS) for work in works)
    batch = ContinuousBatch(
        Path(order.model),
        kv_tokens=kv_tokens,
        options=ComputeOptions(order.device, order.dtype),
        max_batch_tokens=order.max_batch_tokens,
        max_batch_pictures=order.max_batch_pictures,
    )
    pictures = Path(order.pictures)
    with torch.inference_mode():
        batch.run(order.warm_up, pictures)
        return [_timed(batch, work, pictures) for work in order.rounds]


def _timed(batch: ContinuousBatch, work: Work, pictures: Path) -> Round:
    clock = CpuClock({"compute": os.getpid()})
    started = time.perf_counter()
    num_tokens = batch.run(
        work, pictures
    )  # every step ends with sampled tokens on the host: nothing is left to wait for
    seconds = time.perf_counter() - started
    assert num_tokens == work.num_tokens, f"{num_tokens} tokens instead of {work.num_tokens}"
    return Round(seconds=seconds, num_pictures=len(work.pictures), num_tokens=num_tokens, cpu_s=clock.passed())


def main(arguments: Sequence[str]) -> None:
    """Read an order, write its rounds."""
    asked, answered = map(Path, arguments)
    order = msgspec.json.decode(asked.read_bytes(), type=InProcessOrder)
    answered.write_bytes(msgspec.json.encode(run_order(order)))


if __name__ == "__main__":
    main(sys.argv[1:])
