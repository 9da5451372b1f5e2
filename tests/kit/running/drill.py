"""What fault tests share: a crowd of jobs whose event streams are read as a client would, and what logs say of it.

Times are this host's wall clock (`time.time()`), so that those of streams, signals and log lines can be compared.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.jobs import JobEvent, JobRecord
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.cuts import parse_cut
from tests.kit.models.transformers_oracle import Variant
from tests.kit.pictures import picture
from tests.kit.running.clusters import DENSE, NUM_LAYERS, tiny_cluster
from tests.kit.running.pipeline_client import PipelineClient

KV_TOKENS = 16_384
"""Room for a whole crowd on one route, so that a lost one makes nobody wait for KV."""

_RECONNECT_S = 0.1
_PATIENCE_S = 100.0
_NUM_SUBMISSIONS = 5


def fault_cluster(
    directory: Path, cut: str, *, num_each: int = 1, variant: Variant = DENSE, **changes: Any
) -> LocalCluster:
    """Return a pipeline, not started yet, with `num_each` workers for every range of the cut."""
    stages = tuple(blocks for blocks in parse_cut(cut, NUM_LAYERS) for _ in range(num_each))
    return reshaped(tiny_cluster(directory, variant, cut), stages=stages, kv_tokens=KV_TOKENS, **changes)


def reshaped(cluster: LocalCluster, **changes: Any) -> LocalCluster:
    """Return a cluster with other settings, which is not started yet either."""
    return LocalCluster(replace(cluster.settings, **changes))


# --- jobs and their streams -----------------------------------------------------------------------------------------


@dataclass
class Follower:
    """Reads one job's event stream to its end, reconnecting with `Last-Event-ID` as browsers do."""

    job_id: str
    last_id: str = ""
    num_restarts: int = 0
    tokens: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)
    record: JobRecord | None = None
    num_connects: int = 0

    async def follow(self, http: aiohttp.ClientSession, gateway_url: str) -> JobRecord:
        """Read until the job has finished. Asserts that no token is told twice and none is left out."""
        while self.record is None:
            self.num_connects += 1
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                await self._read(http, f"{gateway_url}/v1/jobs/{self.job_id}/events")
            await asyncio.sleep(0 if self.record else _RECONNECT_S)
        return self.record

    async def _read(self, http: aiohttp.ClientSession, url: str) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        async with http.get(url, headers=headers) as answer:
            if answer.status == 503:
                return
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"id: "):
                    self.last_id = line[4:].strip().decode()
                elif line.startswith(b"data: "):
                    self._take(msgspec.json.decode(line[6:], type=JobEvent))

    def _take(self, event: JobEvent) -> None:
        if event.kind == "tokens":
            assert event.index == len(self.tokens), f"{self.job_id}: token {event.index} after {len(self.tokens)}"
            self.tokens += [entry.token_id for entry in event.tokens]
            self.token_times += [time.time()] * len(event.tokens)
        elif event.kind == "restarted":
            self.num_restarts += 1
            self.tokens, self.token_times = [], []
        elif event.kind == "finished":
            self.record = event.record

    def longest_gap_s(self, since: float, until: float) -> float:
        """Return the longest time without a token between two times; the stream has to be running at both."""
        times = [since, *(each for each in self.token_times if since < each < until), until]
        return max(after - before for before, after in itertools.pairwise(times))

    def first_token_after(self, moment: float) -> float:
        """Return when the first token after a moment came."""
        return next(each for each in self.token_times if each > moment)


@dataclass(frozen=True)
class Asked:
    """One job of a crowd."""

    prompt: str
    pictures: tuple[bytes, ...]
    sampling: dict[str, Any]


def crowd_questions(num_jobs: int, max_tokens: int) -> list[Asked]:
    """Return jobs, greedy and seeded in turn, with pictures and without, that all run to `max_tokens`."""
    return [
        Asked(
            prompt=f"Describe this in your own words, number {number}.",
            pictures=(picture(number),) if number % 3 else (),
            sampling={
                "max_tokens": max_tokens,
                "ignore_eos": True,
                **({"temperature": 1.0, "top_p": 0.95, "seed": number} if number % 2 else {}),
            },
        )
        for number in range(num_jobs)
    ]


def shortened(
    questions: Sequence[Asked], expected: list[list[int]], max_tokens: int
) -> tuple[list[Asked], list[list[int]]]:
    """Return the same jobs with fewer tokens, and what they say: whether a job goes on decides no token before that."""
    asked = [replace(each, sampling={**each.sampling, "max_tokens": max_tokens}) for each in questions]
    return asked, [tokens[:max_tokens] for tokens in expected]


class Crowd:
    """Jobs in flight, each followed on its event stream."""

    num_submissions = 1
    """How often the jobs were submitted, until enough of them were decoding together."""

    def __init__(self, client: PipelineClient, followers: list[Follower], tasks: list[asyncio.Task[JobRecord]]) -> None:
        self.client = client
        self.followers = followers
        self._tasks = tasks

    async def is_decoding(self, num_tokens: int, *, at_once: int) -> bool:
        """Return once so many jobs have `num_tokens` tokens and have not finished; False when that cannot be."""
        async with asyncio.timeout(_PATIENCE_S):
            while self.num_decoding(num_tokens) < at_once:
                self._raise_failures()
                if sum(each.record is None for each in self.followers) < at_once:
                    return False
                await asyncio.sleep(0.005)
        return True

    def num_decoding(self, num_tokens: int = 1) -> int:
        """Return how many jobs have tokens and have not finished."""
        return sum(each.record is None and len(each.tokens) >= num_tokens for each in self.followers)

    async def finish(self, timeout_s: float = _PATIENCE_S) -> list[list[int]]:
        """Wait for the end of all; each has to have succeeded, and streamed what Redis holds. Returns the tokens."""
        async with asyncio.timeout(timeout_s):
            records = await asyncio.gather(*self._tasks)
        for follower, record in zip(self.followers, records, strict=True):
            assert record.status == "succeeded", record
            assert follower.tokens == await self.client.tokens(follower.job_id)
        return [each.tokens for each in self.followers]

    def split(self, job_ids: set[str]) -> tuple[list[Follower], list[Follower]]:
        """Return the followers of these jobs, and the others."""
        return (
            [each for each in self.followers if each.job_id in job_ids],
            [each for each in self.followers if each.job_id not in job_ids],
        )

    def _raise_failures(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()


@asynccontextmanager
async def submitted(client: PipelineClient, questions: Sequence[Asked]) -> AsyncIterator[Crowd]:
    """Submit jobs and follow them; reading ends with the context."""
    job_ids = await asyncio.gather(
        *(client.submit(*each.pictures, prompt=each.prompt, **each.sampling) for each in questions)
    )
    followers = [Follower(job_id) for job_id in job_ids]
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        tasks = [asyncio.create_task(each.follow(http, client.cluster.gateway_url)) for each in followers]
        try:
            yield Crowd(client, followers, tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def decoding(
    client: PipelineClient, questions: Sequence[Asked], num_tokens: int, *, at_once: int
) -> AsyncIterator[Crowd]:
    """Submit jobs, and yield them while so many have at least `num_tokens` tokens and have not finished.

    Where this process was late, since others share its cores, they run to their end and are submitted again.
    """
    for number in range(_NUM_SUBMISSIONS):
        async with submitted(client, questions) as crowd:
            crowd.num_submissions = number + 1
            if await crowd.is_decoding(num_tokens, at_once=at_once):
                yield crowd
                return
            await crowd.finish()
    raise AssertionError(f"{_NUM_SUBMISSIONS} times too quick to be disturbed")


@dataclass(frozen=True)
class Drill:
    """A running pipeline and what its crowd says when nothing happens."""

    client: PipelineClient
    expected: list[list[int]]


async def undisturbed(client: PipelineClient, questions: Sequence[Asked]) -> list[list[int]]:
    """Run jobs with nothing in their way and return their tokens."""
    async with submitted(client, questions) as crowd:
        return await crowd.finish()


async def run_command(client: PipelineClient, *arguments: str) -> tuple[int, str, str]:
    """Run an operator's command as a person does; return exit code, output and what went to stderr."""
    process = await asyncio.create_subprocess_exec(
        "broker-pipeline", *arguments, "--gateway", client.cluster.gateway_url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


# --- logs and status ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogLine:
    """One line of a service's JSON log."""

    at: float
    event: str
    facts: dict[str, Any]


def log_lines(path: Path, since: float = 0.0, event: str | None = None) -> list[LogLine]:
    """Return the lines that a service has logged since a time, all or of one event."""
    lines = []
    for text in path.read_text().splitlines():
        if not text.startswith("{"):
            continue
        facts = json.loads(text)
        at = datetime.fromisoformat(facts["timestamp"]).timestamp()
        if at >= since and event in (None, facts["event"]):
            lines.append(LogLine(at, facts["event"], facts))
    return lines


def jobs_lost(cluster: LocalCluster, since: float, conductor: str = "conductor-0") -> set[str]:
    """Return the jobs that have lost an attempt since a time."""
    lines = log_lines(cluster.processes[conductor].log_path, since, "attempt_lost")
    return {line.facts["job"] for line in lines}


async def status_when(
    cluster: LocalCluster, condition: Any, *, timeout_s: float = 60.0, what: str = "the status"
) -> PipelineStatus:
    """Return the first status with a conductor for which `condition(status)` holds.

    On a busy machine a lease may run out while processes start; until it is taken again there is no conductor.
    """
    deadline = time.monotonic() + timeout_s
    while (status := await fetch_status(cluster.gateway_url)).conductor is None or not condition(status):
        assert time.monotonic() < deadline, f"{what} is not there after {timeout_s} s: {status}"
        await asyncio.sleep(0.1)
    return status
