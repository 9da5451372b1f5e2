"""What is left must be found: on a real NATS and a real Redis, and among real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import msgspec
import pytest_asyncio

from broker_pipeline import redis_keys, subjects
from broker_pipeline.messages.jobs import ChatMessage, JobSpec, TextPart
from broker_pipeline.messages.status import ConductorStatus, StageStatus
from broker_pipeline.messages.workers import BlockRange, Heartbeat, WorkerRecord
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport
from tests.kit.waiting import wait_until
from trials.soak.proof.leftovers import Leftovers, living_descendants
from trials.soak.proof.proofs import Proof

SPEC = JobSpec(job_id="job-1", created_at=1.0, messages=(ChatMessage(role="user", content=(TextPart(text="hi"),)),))


class Pipeline:
    """What a pipeline writes where, by hand."""

    def __init__(self, transport: Transport, redis: RedisClient, namespace: str) -> None:
        self.transport, self.redis, self.namespace = transport, redis, namespace
        self.queue = JobQueue(transport, namespace, max_bytes=2**20)
        self.media = MediaStore(transport, redis, namespace, 2**20)
        self.beat = Heartbeat(worker="stage-0", instance="i1", role="stage")

    async def write(self, *, reserved: int = 0, preparing: int = 0) -> None:
        stage = StageStatus(
            worker="stage-0",
            instance="i1",
            blocks=BlockRange(start=0, stop=4),
            state="ready",
            kv_capacity_tokens=100,
            kv_used_tokens=reserved,
            busy=0.0,
        )
        status = ConductorStatus(
            **dict.fromkeys(("epoch", "updated_at", "uptime_s", "num_jobs_waiting", "tokens_per_s"), 0),  # type: ignore[arg-type]
            **dict.fromkeys(("captions_per_s", "num_replays", "num_uncommitted_tokens"), 0),  # type: ignore[arg-type]
            **dict.fromkeys(("routes", "missing_blocks", "vision", "refused"), ()),  # type: ignore[arg-type]
            instance="c1",
            fingerprint="f",
            stages=(stage,),
            waits_for=None,
            num_sessions={"preparing": preparing},
            num_finished={},
        )
        await self.redis.set(redis_keys.status(self.namespace, "main"), msgspec.json.encode(status))
        root = subjects.worker_root(self.namespace, "main", "stage", "stage-0", "i1")
        record = WorkerRecord(
            worker="stage-0", instance="i1", role="stage", pipeline="main", subject=root, blocks=stage.blocks
        )
        await WorkerRegistry(self.redis, self.namespace, "main", ttl_s=60).register(record)

    async def beats(self) -> None:
        root = subjects.worker_root(self.namespace, "main", "stage", "stage-0", "i1")
        while True:
            await self.transport.publish(subjects.heartbeat(root), self.beat)
            await asyncio.sleep(0.02)

    async def proofs(self, *, num_stages: int = 1) -> dict[str, Proof]:
        leftovers = Leftovers(self.transport, self.redis, self.namespace, "main")
        tasks = [asyncio.create_task(leftovers.listen()), asyncio.create_task(self.beats())]
        try:
            found = await leftovers.prove(num_stages, settle_s=0.3)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return {proof.statement: proof for proof in found}


@pytest_asyncio.fixture
async def pipeline(nats_url: str, redis: RedisClient, namespace: str) -> AsyncIterator[Pipeline]:
    async with Transport.open(nats_url, name="leftovers") as transport:
        made = Pipeline(transport, redis, namespace)
        await made.queue.ensure()
        await made.media.ensure()
        await made.write()
        yield made


def failed(proofs: dict[str, Proof]) -> str:
    return " | ".join(f"{proof.statement}: {proof.examples}" for proof in proofs.values() if not proof.holds)


async def test_a_pipeline_at_rest_leaves_nothing(pipeline: Pipeline) -> None:
    content = await pipeline.media.put(b"x" * 1000, "job-1")
    await pipeline.media.release([content], "job-1")
    proofs = await pipeline.proofs()
    assert failed(proofs) == ""
    assert len(proofs) == 4


async def test_kv_that_a_stage_still_holds_is_found(pipeline: Pipeline) -> None:
    pipeline.beat = msgspec.structs.replace(pipeline.beat, num_sessions=1, kv_used_tokens=33)
    assert "stage-0 holds 1 sessions, 33 tokens of KV" in failed(await pipeline.proofs())


async def test_a_stage_that_is_not_there_or_silent_is_found(pipeline: Pipeline) -> None:
    assert "1 of 2 stages are registered" in failed(await pipeline.proofs(num_stages=2))
    pipeline.beat = msgspec.structs.replace(pipeline.beat, instance="another")
    assert "stage-0 has sent no heartbeat since" in failed(await pipeline.proofs())


async def test_what_the_conductor_still_reserves_is_found(pipeline: Pipeline) -> None:
    await pipeline.write(reserved=7, preparing=2)
    said = failed(await pipeline.proofs())
    assert "7 tokens reserved at stage-0" in said
    assert "2 sessions are preparing" in said


async def test_a_job_that_still_waits_is_found(pipeline: Pipeline) -> None:
    await pipeline.queue.publish(SPEC)
    assert "1 jobs wait, 0 are in progress" in failed(await pipeline.proofs())


async def test_a_picture_that_somebody_still_refers_to_is_found(pipeline: Pipeline) -> None:
    await JobStore(pipeline.redis, pipeline.namespace).create(SPEC)
    await pipeline.media.put(b"x" * 1000, SPEC.job_id)
    assert "the media store holds" in failed(await pipeline.proofs())


def test_living_descendants_are_found_also_below_a_child() -> None:
    script = "import subprocess, sys, time; subprocess.Popen(['sleep', '30']); print('up', flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        found = living_descendants(child.pid)
        assert len(found) == 1
        assert found[0].endswith("sleep 30")
        grandchild = int(found[0].split()[0])
        os.kill(grandchild, 9)
        wait_until(lambda: not living_descendants(child.pid))
        child.kill()
