"""The conductor's side that faces the stages, whole and real, at the test's clock: who answers is the test.

side = StageSide()
side.workers.join(record("a", 0, 6))
job = side.start("job")                 a session on route a
(microbatch,) = side.scheduler.plan(side.clock())
side.take(answer(microbatch))           as the dispatcher does
"""

from __future__ import annotations

import asyncio
from functools import cache

import msgspec

from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.conductor.output.output import Output
from broker_pipeline.conductor.output.stop_rule import StopRule
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import Failure
from broker_pipeline.messages.activation import MicrobatchResult, SessionFailure
from broker_pipeline.messages.sampling import SampledToken, SamplingSettings
from broker_pipeline.messages.workers import BlockRange, WorkerRecord
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.scheduling.session_state import SessionState
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from export.synthetic.tiny_tokenizer import tiny_tokenizer
from tests.kit.fake_clock import FakeClock
from tests.kit.simulated.stages import prompt_of

NUM_LAYERS = 6
EPOCH = 7
FINGERPRINT = "f" * 64


def record(name: str, start: int = 0, stop: int = NUM_LAYERS, *, instance: str = "", **facts: object) -> WorkerRecord:
    """Return a stage's record, or with `role="vision"` a vision worker's."""
    instance = instance or f"{name}-1"
    stage = {"blocks": BlockRange(start=start, stop=stop), "num_layers": NUM_LAYERS, "kv_capacity_tokens": 1000,
             "max_batch_tokens": 64, "verifies_drafts": True}  # fmt: skip
    fields = {"role": "stage", "fingerprint": FINGERPRINT, "dtype": "float32"} | facts
    if fields["role"] == "stage":
        fields = stage | fields
    return WorkerRecord(
        worker=name, instance=instance, pipeline="main", subject=f"bp.main.worker.{name}.{instance}",
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


class StageSide:
    """Scheduler, generations and workers."""

    def __init__(self, limits: SchedulerLimits | None = None) -> None:
        self.clock = FakeClock()
        self.plan_due = asyncio.Event()
        self.scheduler = Scheduler(NUM_LAYERS, limits)
        self.generations = Generations(self.scheduler, self.plan_due, self.clock)
        self.workers = Workers(self.scheduler, self.generations, self.plan_due)

    def committer(self, transport: Transport, redis: RedisClient, namespace: str) -> Committer:
        store = JobStore(redis, namespace)
        return Committer(store, JobEvents(transport, namespace, Watchers()), self.generations.refuse)

    def start(self, name: str, committer: Committer, *, num_prompt: int = 4, max_tokens: int = 5) -> Generation:
        """Start a session on whatever route has room."""
        route = self.scheduler.assign(name, num_prompt + max_tokens)
        assert route is not None, "no route"
        session = SessionState(
            key=SessionKey(name, 1),
            order=0,
            route=route,
            prompt=prompt_of(num_prompt),
            sampling=SamplingSettings(),
            num_kv_tokens=num_prompt + max_tokens,
        )
        generation = Generation(session, 1, Output(vocabulary(), StopRule(max_tokens=max_tokens)), committer)
        self.generations.start(generation)
        return generation

    def plan(self) -> list[PlannedBatch]:
        planned = self.scheduler.plan(self.clock())
        self.generations.tell(self.scheduler.take_resumed())
        return planned

    def states(self) -> dict[str, str]:
        """Return what the scheduler thinks of every stage, by name."""
        routes = self.scheduler.routes
        return {w.name: "used" for w in routes.usable} | {w.name: "suspended" for w in routes.suspended}


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(tiny_tokenizer())


def tokens_of(segment: PlannedSegment) -> list[SampledToken]:
    """Return what stages answer a segment and its drafts with: the letter A, for ever."""
    key, first = segment.session.key, segment.stop - len(segment.drafts)
    return [
        SampledToken(session=key.session, attempt=key.attempt, position=position, token_id=32)
        for position in range(first, segment.stop + 1)
        if segment.wants_token
    ]


def answer(microbatch: PlannedBatch, *, spoilt: Failure | None = None, **changes: object) -> MicrobatchResult:
    """Return what the last stage answers; `spoilt`: why every session of it came to nothing."""
    keys = [segment.session.key for segment in microbatch.segments]
    failures = [SessionFailure(session=key.session, attempt=key.attempt, failure=spoilt) for key in keys if spoilt]
    result = MicrobatchResult(
        pipeline="main",
        fingerprint=FINGERPRINT,
        epoch=EPOCH,
        microbatch=microbatch.number,
        worker=microbatch.route.workers[-1].name,
        tokens=tuple(token for each in microbatch.segments for token in tokens_of(each) if not spoilt),
        failures=tuple(failures),
    )
    return msgspec.structs.replace(result, **changes)
