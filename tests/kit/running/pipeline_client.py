"""What tests do to a running pipeline: submit, wait, read tokens."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp

from broker_pipeline import subjects
from broker_pipeline.errors import StateError
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.wire.transport import Transport
from tests.kit.waiting import eventually

GREEDY = {"temperature": 0.0}
_DENIALS = ("Violation", "nats_permission_denied", "Redis does not allow it", "result_forged", "NOPERM")
PROMPT = "Describe this picture in one sentence."


class PipelineClient:
    """Speaks HTTP to the gateway, and reads committed tokens from Redis as a gateway would."""

    def __init__(self, cluster: LocalCluster, http: aiohttp.ClientSession) -> None:
        self.cluster = cluster
        self._http = http
        self.headers: dict[str, str] = {}
        """What every submission carries besides."""

    async def submit(self, *pictures: bytes, prompt: str = PROMPT, max_tokens: int | None = 12, **sampling: Any) -> str:
        """Submit a job whose pictures stand before the prompt; greedy unless told otherwise."""
        parts: list[dict[str, str]] = [{"type": "image", "url": _data_url(picture)} for picture in pictures]
        parts.append({"type": "text", "text": prompt})
        body = {
            "messages": [{"role": "user", "content": parts}],
            "sampling": {**GREEDY, "max_tokens": max_tokens, **sampling},
        }
        content = io.BytesIO(json.dumps(body).encode())  # aiohttp warns of large ones given otherwise
        headers = {"Content-Type": "application/json", **self.headers}
        async with self._http.post(f"{self.cluster.gateway_url}/v1/jobs", data=content, headers=headers) as answer:
            said = await answer.json()
            assert answer.status < 300, said
            return str(said["job_id"])

    async def wait(self, job_ids: Sequence[str], timeout_s: float = 100.0) -> list[JobRecord]:
        """Return the records of finished jobs, in order; outages of Redis are sat out."""
        deadline = time.monotonic() + timeout_s
        done: dict[str, JobRecord] = {}
        while len(done) < len(job_ids):
            for record in await self.records([job_id for job_id in job_ids if job_id not in done]):
                if record.status in FINAL_STATUSES:
                    done[record.job_id] = record
            if time.monotonic() > deadline:
                left = [job_id for job_id in job_ids if job_id not in done]
                raise TimeoutError(f"{len(left)} of {len(job_ids)} jobs are unfinished after {timeout_s} s: {left[:5]}")
            await asyncio.sleep(0.05)
        return [done[job_id] for job_id in job_ids]

    async def wait_any(self, job_ids: Sequence[str], num_jobs: int) -> None:
        """Return once `num_jobs` of these have finished."""
        async with asyncio.timeout(100):
            while await self.num_finished(job_ids) < num_jobs:  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.02)

    async def until_answering(self, job_ids: Sequence[str]) -> None:
        """Return once each of these has a token, or has finished."""
        for job_id in job_ids:

            async def has_begun(job_id: str = job_id) -> bool:
                return bool(await self.tokens(job_id)) or await self.num_finished([job_id]) > 0

            await eventually(has_begun)

    async def num_finished(self, job_ids: Sequence[str]) -> int:
        """Return how many of these jobs have finished."""
        return sum(record.status in FINAL_STATUSES for record in await self.records(job_ids))

    async def records(self, job_ids: Sequence[str]) -> list[JobRecord]:
        """Return jobs as Redis knows them; nothing while it is away."""
        try:
            async with self._store() as store:
                return [await store.get(job_id) for job_id in job_ids]
        except StateError:
            return []

    async def run(self, job_ids: Sequence[str], timeout_s: float = 100.0) -> list[list[int]]:
        """Wait for jobs that must succeed and return their tokens."""
        for record in await self.wait(job_ids, timeout_s):
            assert record.status == "succeeded", record
        return [await self.tokens(job_id) for job_id in job_ids]

    async def tokens(self, job_id: str) -> list[int]:
        """Return the ids of a job's committed tokens; outages of Redis are sat out."""
        found: list[list[int]] = []

        async def is_read() -> bool:
            with suppress(StateError):  # a failover may not be over for one who connects now
                async with self._store() as store:
                    found.append([entry.token_id for entry in await store.tokens(job_id)])
            return bool(found)

        await eventually(is_read)
        return found[0]

    async def wait_empty(self, timeout_s: float = 60.0) -> None:
        """Return once every stage says that it holds no session and no KV."""
        settings = self.cluster.settings
        subject = subjects.heartbeats(settings.namespace, settings.pipeline)
        held: dict[str, Heartbeat] = {}
        async with (
            asyncio.timeout(timeout_s),
            Transport.open(self.cluster.nats_url, name="test") as transport,
            transport.subscribe(subject, Heartbeat) as beats,
        ):
            async for received in beats:
                if received.body.role == "stage":
                    held[received.body.worker] = received.body
                is_empty = all(beat.num_sessions == beat.kv_used_tokens == 0 for beat in held.values())
                if len(held) == len(settings.stages) and is_empty:
                    return

    async def counts(self) -> dict[str, int]:
        """Return how many jobs have ended in each way, by the counters that every finish raises once."""
        async with self._store() as store:
            counts = await store.counts()
        return {name: getattr(counts, name) for name in counts.__struct_fields__}

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[JobStore]:
        async with open_redis(self.cluster.redis_url, timeout_s=2.0) as redis:
            yield JobStore(redis, self.cluster.settings.namespace)


def denials(cluster: LocalCluster) -> list[str]:
    """Return lines of a pipeline's logs that tell of something not allowed: in a pipeline by itself there are none."""
    logs = sorted((cluster.settings.data_dir / "logs").glob("*.log"))
    lines = (line for log in logs for line in log.read_text(errors="replace").splitlines())
    return [line for line in lines if any(word in line for word in _DENIALS)]


@asynccontextmanager
async def client_of(cluster: LocalCluster) -> AsyncIterator[PipelineClient]:
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        yield PipelineClient(cluster, http)
    assert not denials(cluster), "what its own parts do, the servers of a pipeline allow"


def _data_url(content: bytes) -> str:
    kind = "jpeg" if content.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
