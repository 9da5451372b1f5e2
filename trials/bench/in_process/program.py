"""The same work in one process: `python -m trials.bench.in_process.program DIRECTORY`, with the order in there.

`broker-pipeline bench pipeline` runs this alongside the whole system and compares the two.
"""

from __future__ import annotations

from pathlib import Path

from stages.compute.options import ComputeOptions
from trials.bench.child import run_child
from trials.bench.in_process.continuous import ContinuousBatch
from trials.bench.in_process.rounds import serve_rounds
from trials.bench.work import InProcessOrder


def make_batch(order: InProcessOrder) -> ContinuousBatch:
    """Load the model."""
    return ContinuousBatch(
        Path(order.model),
        Path(order.pictures),
        kv_tokens=order.kv_tokens,
        options=ComputeOptions(
            order.device,
            order.dtype,
            max_batch_tokens=order.max_batch_tokens,
            max_step_sessions=order.warm_up.num_in_flight,
        ),
        max_batch_tokens=order.max_batch_tokens,
        max_batch_pictures=order.max_batch_pictures,
        num_readers=order.num_threads if order.device.startswith("cuda") else 0,
    )


if __name__ == "__main__":
    run_child(lambda arguments: serve_rounds(arguments, make_batch, "compute"))
