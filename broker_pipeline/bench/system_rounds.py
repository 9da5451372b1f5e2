"""Rounds of work through the whole system: HTTP in, HTTP out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from broker_pipeline.bench.cpu_time import CpuClock
from broker_pipeline.bench.work import Round, Work
from broker_pipeline.caption.client import CaptionClient
from broker_pipeline.caption.request import CaptionRequest
from broker_pipeline.errors import PipelineError, error_from_failure
from broker_pipeline.local.cluster import LocalCluster
from broker_pipeline.local.plan import LocalSettings


async def system_rounds(settings: LocalSettings, pictures: Path, warm_up: Work, rounds: Sequence[Work]) -> list[Round]:
    """Bring up a pipeline, warm it up, and time every round.

    Raises `ServerStartError` when something does not start, and the error of the first job that does not succeed.
    """
    async with LocalCluster(settings) as cluster:
        await _run(cluster, pictures, warm_up)
        return [await _timed(cluster, pictures, work) for work in rounds]


async def _timed(cluster: LocalCluster, pictures: Path, work: Work) -> Round:
    pids = {name: program.process.pid for name, program in cluster.processes.items()}
    clock = CpuClock({**pids, "client": os.getpid()})
    started = time.perf_counter()
    await _run(cluster, pictures, work)
    seconds = time.perf_counter() - started
    return Round(seconds=seconds, num_pictures=len(work.pictures), num_tokens=work.num_tokens, cpu_s=clock.passed())


async def _run(cluster: LocalCluster, pictures: Path, work: Work) -> None:
    async with CaptionClient.open(cluster.gateway_url) as client:
        remaining = iter(work.pictures)
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(work.num_in_flight, len(work.pictures))):
                    tasks.create_task(_submit(client, pictures, work, remaining))
        except* PipelineError as errors:
            raise errors.exceptions[0] from None


async def _submit(client: CaptionClient, pictures: Path, work: Work, remaining: Iterator[str]) -> None:
    request = CaptionRequest(prompt=work.prompt, sampling=work.sampling)
    for name in remaining:
        content = (pictures / name).read_bytes()
        submitted = await client.submit(content, request, key=f"bench-{name}")
        record = await client.wait(submitted.record.job_id)
        if record.error is not None:
            raise error_from_failure(record.error)
        assert record.result is not None, "it has ended without an error"
        num_tokens = record.result.usage.num_output_tokens
        assert num_tokens == work.num_output_tokens, f"{num_tokens} tokens instead of {work.num_output_tokens}"
