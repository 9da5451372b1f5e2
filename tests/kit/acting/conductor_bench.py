"""A conductor on a real broker and a real Redis, with workers that speak the contract and misbehave on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.conductor.conductor import Conductor
from broker_pipeline.conductor.metrics import ConductorMetrics
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.conductor.surroundings import Surroundings
from broker_pipeline.config import CommonSettings
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.jobs import FINAL_STATUSES, ChatMessage, Flow, JobRecord, JobSpec, TextPart
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.workers import ActingStage, ActingVision, right_token
from tests.kit.models.tiny_artifacts import tiny_artifact

NOBODYS = Flow()
PROMPT = "What is in the picture?"


class Bench:
    """Queue, stores, workers and conductors of one namespace."""

    def __init__(self, transport: Transport, redis: RedisClient, namespace: str, stack: AsyncExitStack) -> None:
        self.transport, self.redis, self.namespace, self._stack = transport, redis, namespace, stack
        self.model = TextModel.open(tiny_artifact(), 32)
        self.fingerprint = self.model.facts.fingerprint
        self.store = JobStore(redis, namespace)
        self.queue = JobQueue(transport, namespace, ack_wait_s=3.0)
        self.specs: dict[str, JobSpec] = {}
        self.metrics = ConductorMetrics()
        """Of the conductor that is active, also while Redis is away."""
        self.conductors: list[asyncio.Task[None]] = []

    async def stage(self, name: str, start: int, stop: int, **options: object) -> ActingStage:
        stage = ActingStage(
            self.transport, self.redis, self.namespace, name, start, stop,
            **({"fingerprint": self.fingerprint} | options),  # type: ignore[arg-type]
        )  # fmt: skip
        return await self._stack.enter_async_context(stage)

    async def vision(self, name: str = "vision-0") -> ActingVision:
        vision = ActingVision(self.transport, self.redis, self.namespace, name, fingerprint=self.fingerprint)
        return await self._stack.enter_async_context(vision)

    def conductor(self, instance: str = "c0", drain_s: float = 5.0, **changes: object) -> asyncio.Event:
        """Start a conductor; setting the event asks it to stop."""
        common = CommonSettings(namespace=self.namespace, drain_s=drain_s)
        fields = {"heartbeat_timeout_s": 0.5, "ack_wait_s": 3.0, "lease_ttl_s": 3.0, "deadline_s": 5.0} | changes
        settings = ConductorSettings(model="", **fields)  # type: ignore[arg-type]
        around = Surroundings(self.transport, self.redis, self.model, common, settings, instance, self.metrics)
        stopping = asyncio.Event()
        self.conductors.append(asyncio.create_task(Conductor(around).run(stopping)))
        return stopping

    async def submit(
        self,
        prompt: str = PROMPT,
        job_id: str = "",
        flow: Flow = NOBODYS,
        **sampling: object,
    ) -> str:
        fields = {"max_tokens": 20, "ignore_eos": True} | sampling
        spec = JobSpec(
            job_id=job_id or new_job_id(),
            created_at=time.time(),
            messages=(ChatMessage(role="user", content=(TextPart(text=prompt),)),),
            sampling=SamplingParams(**fields),  # type: ignore[arg-type]
            priority=flow.priority,
            tenant=flow.tenant,
        )
        self.specs[spec.job_id] = spec
        await self.store.create(spec)
        await self.queue.publish(spec)
        return spec.job_id

    async def wait(self, job_ids: list[str], timeout_s: float = 15.0) -> list[JobRecord]:
        async with asyncio.timeout(timeout_s):
            while True:
                records = [await self.store.get(job_id) for job_id in job_ids]
                if all(record.status in FINAL_STATUSES for record in records):
                    return records
                await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def progress(self, job_ids: list[str], num_tokens: int) -> None:
        """Wait until every job has at least this many tokens in Redis."""
        async with asyncio.timeout(20):
            for job_id in job_ids:
                while len(await self.store.tokens(job_id)) < num_tokens:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    async def check_right(self, job_ids: list[str]) -> None:
        """Every job succeeded with the tokens that an undisturbed run gives."""
        for job_id in job_ids:
            record = await self.store.get(job_id)
            assert record.status == "succeeded", record
            spec = self.specs[job_id]
            num_prompt, max_tokens = len(spec.messages[0].content[0].text), spec.sampling.max_tokens or 0
            expected = [right_token(job_id, num_prompt + index) for index in range(max_tokens)]
            entries = await self.store.tokens(job_id)
            assert [entry.token_id for entry in entries] == expected
            assert record.result is not None
            assert record.result.text == "".join(entry.text for entry in entries)
            assert record.result.usage.num_output_tokens == max_tokens

    async def check_empty(self, *stages: ActingStage, timeout_s: float = 20.0) -> None:
        """Nothing is left in the queue or on the stages."""
        async with asyncio.timeout(timeout_s):
            while True:
                depth = await self.queue.depth()
                if depth.num_waiting == depth.num_in_progress == 0 and not any(stage.reserved for stage in stages):
                    return
                await asyncio.sleep(0.02)

    async def status(self, condition: Callable[[ConductorStatus], bool], timeout_s: float = 20.0) -> ConductorStatus:
        key = redis_keys.status(self.namespace, "main")
        async with asyncio.timeout(timeout_s):
            while True:
                text = await self.redis.get(key)
                if text is not None and condition(status := msgspec.json.decode(text, type=ConductorStatus)):
                    return status
                await asyncio.sleep(0.05)

    async def stop_all(self) -> None:
        for task in self.conductors:
            task.cancel()
        if self.conductors:
            _, pending = await asyncio.wait(self.conductors, timeout=20)
            assert not pending, "a conductor does not stop when it is cancelled"


@asynccontextmanager
async def open_bench(nats_url: str, redis_url: str, namespace: str) -> AsyncIterator[Bench]:
    async with (
        Transport.open(nats_url, name="bench") as transport,
        open_redis(redis_url) as redis,
        AsyncExitStack() as stack,
    ):
        bench = Bench(transport, redis, namespace, stack)
        await bench.queue.ensure()
        await MediaStore(transport, redis, namespace, max_bytes=2**24).ensure()
        try:
            yield bench
        finally:
            await bench.stop_all()
