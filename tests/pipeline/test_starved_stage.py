"""An input that breaks whole microbatches, its neighbours' with it: one for which a stage lacks the memory."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, tiny_cluster
from tests.kit.running.drill import log_lines
from tests.kit.running.pipeline_client import client_of
from tests.kit.waiting import eventually

pytestmark = [pytest.mark.alone, pytest.mark.slow, pytest.mark.timeout(240)]

NUM_NEIGHBOURS = 16
MAX_TOKENS = 64
SPARE_BYTES = 150 * 2**20
"""What the stage may still allocate: eager attention over 3,600 tokens takes more, over 200 a hundredth."""
PROMPTS = [f"Describe this picture in {number} words." for number in range(NUM_NEIGHBOURS)]


@contextmanager
def standing_still(cluster: LocalCluster, name: str) -> Iterator[None]:
    process = cluster.processes[name]
    process.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        process.kill(signal.SIGCONT)


def num_prepared(cluster: LocalCluster) -> int:
    return len(log_lines(cluster.processes["vision-0"].log_path, event="session_prepared"))


async def test_who_breaks_the_microbatch_fails_and_who_was_in_it_does_not(tmp_path: Path) -> None:
    expected = [reference_tokens(DENSE, (picture(n),), PROMPTS[n], MAX_TOKENS) for n in range(NUM_NEIGHBOURS)]
    arguments = {"stage": ("--attention", "eager"), "conductor": ("--heartbeat-timeout-s", "60")}
    settings = tiny_cluster(tmp_path / "run", DENSE, "3", extra_arguments=arguments).settings
    async with LocalCluster(replace(settings, kv_tokens=12_000)) as cluster, client_of(cluster) as client:
        await client.run([await client.submit(picture(0), max_tokens=4)])
        stage = psutil.Process(cluster.processes["stage-1"].pid)
        limit = stage.memory_info().vms + SPARE_BYTES
        stage.rlimit(psutil.RLIMIT_AS, (limit, limit))

        good = [client.submit(picture(n), prompt=PROMPTS[n], max_tokens=MAX_TOKENS) for n in range(NUM_NEIGHBOURS)]
        first = await asyncio.gather(*good[:8])
        await client.until_answering(first)
        with standing_still(cluster, "stage-0"):  # what comes meanwhile goes with whose answers come first
            bad = [await client.submit(prompt=letter * 3600, max_tokens=MAX_TOKENS) for letter in "xy"]
            await eventually(lambda: num_prepared(cluster) == 1 + len(first) + len(bad))
        rest = await asyncio.gather(*good[8:])
        assert await client.run([*first, *rest]) == expected
        for record in await client.wait(bad):
            assert record.error is not None
            assert (record.status, record.error.code) == ("failed", "retries_exhausted")
            assert "compute" in record.error.message
            assert "memory" in record.error.message
        shared = [record for record in await client.records([*first, *rest]) if record.attempt > 1]
        assert shared, "no neighbour was in a broken microbatch: this proves nothing"
        assert max(record.attempt for record in shared) <= 3
        assert stage.is_running()
        assert cluster.processes["stage-1"].num_restarts == 0
        after = await client.submit(picture(0), prompt=PROMPTS[0], max_tokens=MAX_TOKENS)
        assert await client.run([after]) == expected[:1]
