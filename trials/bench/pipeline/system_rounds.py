"""Rounds of work through the whole system: HTTP in, HTTP out.

The client must not be what is measured: a round's pictures are read before it begins, connections stay open, and a job
costs two requests, its submission and one that waits until the result is there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.errors import PipelineError, error_from_failure
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.place import Place
from broker_pipeline.tools.local.plan import LocalSettings
from trials.bench.cpu_time import CpuClock
from trials.bench.pipeline.observer import PipelineObserver
from trials.bench.work import Round, Work


@dataclass(slots=True)
class _Times:
    """What the client saw of one round; seconds since it began, and durations."""

    num_prompt_tokens: int = 0
    ended_s: list[float] = field(default_factory=list)
    submit_s: list[float] = field(default_factory=list)
    job_s: list[float] = field(default_factory=list)


class RunningSystem:
    """A pipeline that serves. Made by `open`."""

    def __init__(
        self, cluster: LocalCluster, client: GatewayClient, observer: PipelineObserver, pictures: Path
    ) -> None:
        """Put work through a cluster; `pictures` is where the files of the work lie."""
        self._cluster = cluster
        self._client = client
        self._observer = observer
        self._pictures = pictures

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: LocalSettings, pictures: Path, places: Mapping[str, Place] | None = None
    ) -> AsyncIterator[RunningSystem]:
        """Bring a pipeline up, at `places` as of `LocalCluster`; leaving stops it.

        Raises `ServerStartError` when something does not start.
        """
        async with (
            LocalCluster(settings, places=places) as cluster,
            GatewayClient.open(cluster.gateway_url) as client,
            PipelineObserver.watch(cluster) as observer,
        ):
            yield cls(cluster, client, observer, pictures)

    async def run(self, work: Work) -> Round:
        """Do a round. Raises the error of the first job that does not succeed, or `ServerStartError` of a dead part."""
        contents = {name: (self._pictures / name).read_bytes() for name in work.pictures}
        await self._observer.begin()
        clock = CpuClock({**self._pids(), "client": os.getpid()})
        times, started = _Times(), time.perf_counter()
        await self._submit_all(work, contents, times)
        seconds = time.perf_counter() - started
        return Round(
            seconds=seconds,
            num_pictures=len(work.pictures),
            num_tokens=work.num_tokens,
            num_prompt_tokens=times.num_prompt_tokens,
            cpu_s=clock.passed(),
            middle_captions_per_s=middle_rate(times.ended_s),
            breakdown=await self._observer.end(times.submit_s, times.job_s),
        )

    def _pids(self) -> dict[str, int]:
        """Return the processes of every program by name: further ones are children of the first."""
        pids = {name: program.process.pid for name, program in self._cluster.processes.items()}
        children = {name: psutil.Process(pid).children(recursive=True) for name, pid in pids.items()}
        return pids | {f"{name}.{n}": child.pid for name, each in children.items() for n, child in enumerate(each)}

    async def _submit_all(self, work: Work, contents: dict[str, bytes], times: _Times) -> None:
        remaining = enumerate(work.questions)
        started = time.perf_counter()
        async with self._cluster.watched(), asyncio.TaskGroup() as tasks:
            for _ in range(work.num_in_flight):
                tasks.create_task(self._submit(work, contents, remaining, times, started))

    async def _submit(
        self,
        work: Work,
        contents: Mapping[str, bytes],
        remaining: Iterator[tuple[int, tuple[str, str]]],
        times: _Times,
        started: float,
    ) -> None:
        for number, (name, prompt) in remaining:
            request = CaptionRequest(prompt=prompt, sampling=work.sampling)
            began = time.perf_counter()
            submitted = await self._client.submit(contents[name], request, key=f"bench-{number}-{name}")
            times.submit_s.append(time.perf_counter() - began)
            record = await self._client.wait(submitted.record.job_id)
            times.job_s.append(time.perf_counter() - began)
            times.ended_s.append(time.perf_counter() - started)
            times.num_prompt_tokens = _checked(record, work)


def middle_rate(ended_s: list[float]) -> float | None:
    """Return the rate of the middle half of a round's ends; None for fewer than 8, or where they all came at once."""
    ends = sorted(ended_s)
    first, last = len(ends) // 4, (3 * len(ends)) // 4
    if len(ends) < 8 or ends[last] <= ends[first]:
        return None
    return (last - first) / (ends[last] - ends[first])


def _checked(record: JobRecord, work: Work) -> int:
    """Return the number of prompt tokens of a job that has done what was asked."""
    if record.error is not None:
        raise error_from_failure(record.error)
    if record.result is None:
        raise PipelineError(f"job {record.job_id} is {record.status} and has no result")
    usage = record.result.usage
    if usage.num_output_tokens != work.num_output_tokens:
        raise PipelineError(f"{usage.num_output_tokens} tokens instead of {work.num_output_tokens}")
    return usage.num_prompt_tokens
