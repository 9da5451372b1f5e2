"""Conductors, real ones, with everything around them: workers, NATS, Redis, jobs; under one clock and one seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec

from broker_pipeline import redis_keys, subjects
from broker_pipeline.conductor.conductor import Conductor
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.conductor.surroundings import Surroundings
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import PipelineError
from broker_pipeline.messages.control import CancelRequest
from broker_pipeline.messages.jobs import FINAL_STATUSES, ChatMessage, JobSpec, TextPart
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.model_facts import GenerationDefaults, ModelFacts
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.persistence import persist
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.publishing import JobPublisher
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.stage_side import vocabulary
from tests.kit.acting.worker import ActingWorker
from tests.kit.acting.workers import ActingStage, ActingVision
from tests.simulation.fake_nats.broker import FakeBroker
from tests.simulation.fake_nats.link import FakeLink
from tests.simulation.fake_redis.server import FakeRedisClient, FakeRedisServer
from tests.simulation.processes import Process
from tests.simulation.schedule import Job, Schedule
from tests.simulation.virtual_loop import VirtualLoop

NAMESPACE = "sim"
NUM_LAYERS = 6
_ACK_WAIT_S = 1.0
_HEARTBEAT_S = 0.5


@cache
def model() -> TextModel:
    facts = ModelFacts(
        name="simulated", fingerprint="f" * 64, model_type="qwen3_vl", num_layers=NUM_LAYERS, hidden_size=8,
        num_kv_heads=1, head_dim=8, num_deepstack_levels=0, num_experts_per_token=0, vocab_size=512,
        max_position_embeddings=4096, dtype="float32", image_token_id=500, video_token_id=501, eos_token_ids=(502,),
        generation=GenerationDefaults(),
    )  # fmt: skip
    return TextModel(facts, vocabulary(), 32)


class World:
    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        self.loop, self.chance = loop, chance
        self.broker = FakeBroker(loop, chance)
        self.redis = FakeRedisServer(loop, chance)
        self.processes: dict[str, Process] = {}
        """The living process of each name."""
        self.links: dict[str, FakeLink] = {}
        self.clients: dict[str, FakeRedisClient] = {}
        self.workers: dict[str, ActingWorker] = {}
        self.specs: dict[str, JobSpec] = {}
        self.poison: set[str] = set()
        self.crashes: list[tuple[str, BaseException]] = []
        """Processes that have ended by themselves."""
        self._accepted: set[str] = set()
        """Jobs of which a gateway has told its client that they are."""
        self.forgotten: set[str] = set()
        """Jobs whose end a Redis without power has forgotten, when the queue had let go of them already."""
        self._num_starts = 0
        self._stopping: dict[str, asyncio.Event] = {}
        self._conducting: dict[str, asyncio.Task[None]] = {}
        self._conductors: dict[str, Conductor] = {}
        self._start_again: dict[str, Callable[[], None]] = {}

    # --- processes --------------------------------------------------------------------------------------------------

    def _process(self, name: str) -> tuple[Process, Transport, Any]:
        self._num_starts += 1
        process = Process(f"{name}-{self._num_starts}")
        process.on_failure = lambda error: self.crashes.append((process.name, error))
        link, client = FakeLink(self.broker, process), FakeRedisClient(self.redis, process)
        link.is_connected = self.broker.is_up
        self.processes[name], self.links[name], self.clients[name] = process, link, client
        return process, Transport(link), client  # type: ignore[arg-type]

    def start(self, name: str, role: str, schedule: Schedule) -> None:
        """Start a component, as it will be started again when it was killed."""
        self._start_again[name] = lambda: self.start(name, role, schedule)
        if role == "conductor":
            self._start_conductor(name, schedule.num_drafts)
        elif role == "gateway":
            self._start_gateway(name)
        elif role == "vision":
            self._start_vision(name)
        else:
            start, stop = schedule.stages[int(name.rpartition("-")[2])]
            share = name if schedule.has_shares else ""
            self._start_stage(name, start, stop, kv=schedule.kv, step_s=schedule.step_s, share=share)

    def start_again(self, name: str) -> None:
        self._start_again[name]()

    def _start_conductor(self, name: str, num_drafts: int) -> None:
        self._conductors.pop(name, None)
        process, transport, redis = self._process(name)
        settings = ConductorSettings(
            model="", max_batch_tokens=64, kv_step_tokens=3, ack_wait_s=_ACK_WAIT_S, lease_ttl_s=2.0,
            deadline_s=1.0, first_deadline_s=1.0, prepare_timeout_s=1.0, heartbeat_timeout_s=1.2,
            speculate_tokens=num_drafts, speculate_sessions=2,
        )  # fmt: skip
        around = Surroundings(
            transport, redis, model(), CommonSettings(namespace=NAMESPACE), settings, process.name, clock=self.loop.time
        )
        self._stopping[name] = stopping = asyncio.Event()
        self._conducting[name] = process.start(self._conduct(name, around, stopping))

    async def _conduct(self, name: str, around: Surroundings, stopping: asyncio.Event) -> None:
        await self._make_queue(around.transport)
        self._conductors[name] = conductor = Conductor(around)
        await conductor.run(stopping)

    def books(self, share: str) -> list[ConductorStatus]:
        """Return the books of all who think that they conduct a share."""
        held = [conductor._held[share] for conductor in self._conductors.values() if share in conductor._held]
        return [each.tenure._reporter.gather(0) for each in held if each.tenure is not None]

    def drain_conductor(self, name: str) -> None:
        """Tell it to stop."""
        self._stopping[name].set()

    def replace_conductor(self, name: str) -> None:
        """Start another one in place of one that drains, once that has ended."""
        if not self._conducting[name].done():
            self.loop.call_later(0.1, self.replace_conductor, name)
            return
        self.processes[name].kill()
        self.start_again(name)

    async def _make_queue(self, transport: Transport) -> JobQueue:
        queue = JobQueue(transport, NAMESPACE, ack_wait_s=_ACK_WAIT_S)
        while True:
            try:
                await queue.ensure(update=False)
            except PipelineError:
                await asyncio.sleep(0.2)
            else:
                return queue

    def _start_stage(self, name: str, start: int, stop: int, *, kv: int, step_s: float, share: str) -> None:
        process, transport, redis = self._process(name)
        stage = ActingStage(
            transport, redis, NAMESPACE, name, start, stop,
            fingerprint=model().facts.fingerprint, kv=kv, step_s=step_s, share=share,
        )  # fmt: skip
        self._start_worker(name, stage, process)

    def _start_vision(self, name: str) -> None:
        process, transport, redis = self._process(name)
        self._start_worker(name, ActingVision(transport, redis, NAMESPACE, name, fingerprint="f" * 64), process)

    def _start_worker(self, name: str, worker: ActingWorker, process: Process) -> None:
        root = subjects.worker_root(NAMESPACE, "main", worker.record.role, name, process.name)
        worker.record = msgspec.structs.replace(worker.record, instance=process.name, subject=root)
        worker.heartbeat_s, worker.phase_s = _HEARTBEAT_S, self.chance.uniform(0, _HEARTBEAT_S)
        self.workers[name] = worker
        if isinstance(worker, ActingStage):
            worker.poison = self.poison
        process.start(_live(worker))

    # --- jobs -------------------------------------------------------------------------------------------------------

    def submit(self, job_id: str, job: Job) -> None:
        """Have a gateway record and enqueue a job, as often as that takes."""
        spec = JobSpec(
            job_id=job_id,
            created_at=self.loop.time(),
            messages=(ChatMessage(role="user", content=(TextPart(text="x" * job.num_prompt),)),),
            sampling=SamplingParams(max_tokens=job.max_tokens, ignore_eos=True),
            tenant=job.tenant,
            priority="batch" if len(self.specs) % 2 else "interactive",
        )
        self.specs[spec.job_id] = spec
        if job.is_poison:
            self.poison.add(job_id)
        self._ask_gateway(lambda transport, redis: self._enqueue(spec, transport, redis))

    def _start_gateway(self, name: str) -> None:
        """Start it, and have clients repeat what was not accepted."""
        process, transport, redis = self._process(name)
        self._gateway = process, transport, redis
        for job_id in sorted(self.specs.keys() - self._accepted):
            process.start(self._enqueue(self.specs[job_id], transport, redis))

    def _ask_gateway(self, ask: Callable[[Transport, Any], Coroutine[Any, Any, None]]) -> None:
        process, transport, redis = self._gateway
        if not process.is_dead:
            process.start(ask(transport, redis))

    async def _enqueue(self, spec: JobSpec, transport: Transport, redis: Any) -> None:
        await persist(lambda: JobStore(redis, NAMESPACE).create(spec))
        publisher = JobPublisher.open(await self._make_queue(transport), redis, NAMESPACE)
        while True:
            try:
                await publisher.publish(spec)
            except PipelineError:
                await asyncio.sleep(0.2)
            else:
                self._accepted.add(spec.job_id)
                return

    def cancel(self, job_id: str) -> None:
        """Have the gateway ask for a job's end."""
        self._ask_gateway(lambda transport, redis: self._cancel(job_id, transport, redis))

    async def _cancel(self, job_id: str, transport: Transport, redis: Any) -> None:
        with suppress(PipelineError):
            await persist(lambda: JobStore(redis, NAMESPACE).request_cancel(job_id))
            await transport.publish(subjects.cancel(NAMESPACE), CancelRequest(job_id=job_id))

    def status(self, job_id: str) -> str:
        found = self.redis.data.call("HGET", redis_keys.job(NAMESPACE, job_id), "status")
        return (found or b"").decode()

    @property
    def ended(self) -> set[str]:
        """Jobs that have, as Redis knows."""
        return {job_id for job_id in self.specs if self.status(job_id) in FINAL_STATUSES}

    @property
    def stages(self) -> dict[str, ActingStage]:
        return {name: worker for name, worker in self.workers.items() if isinstance(worker, ActingStage)}

    @property
    def shares(self) -> set[str]:
        return {stage.record.share for stage in self.stages.values()}

    def is_quiet(self) -> bool:
        """Whether every job has ended and nothing is left of any."""
        return (
            not len(self.broker.stream)
            and not any(stage.reserved for stage in self.stages.values())
            and self.ended | self.forgotten == set(self.specs)
        )


async def _live(worker: ActingWorker) -> None:
    """Be a worker; one that cannot register yet tries again, as whoever starts services has it do."""
    while True:
        try:
            await worker.live(asyncio.Event())
        except* PipelineError:
            await asyncio.sleep(0.3)
