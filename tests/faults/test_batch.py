"""A gateway, the conductor and a stage die while a batch of pictures runs: each caption is right, and there once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.running.batch_drill import VICTIMS, demo_cluster, expected, run_batch
from tests.kit.waiting import eventually

NUM_REQUESTS = 60


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_each_request_is_answered_once_and_rightly(tmp_path: Path) -> None:
    async with await demo_cluster(tmp_path) as cluster:
        before = {name: cluster.processes[name].num_restarts for name in VICTIMS}
        outcome = await run_batch(cluster, tmp_path, NUM_REQUESTS)
        programs = cluster.processes
        await eventually(lambda: all(programs[name].num_restarts > before[name] for name in VICTIMS), timeout_s=60)
    print(f"{NUM_REQUESTS} requests in {outcome.seconds:.1f} s")
    assert (outcome.batch.status, outcome.repeated) == ("completed", [])
    assert outcome.captions == expected(NUM_REQUESTS)
