"""The conductor on a real broker and a real Redis, with workers that speak the contract and misbehave on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import msgspec
import pytest

from broker_pipeline import redis_keys, subjects
from broker_pipeline.conductor.conductor import Conductor
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.parts import Surroundings
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.config import CommonSettings
from broker_pipeline.errors import ComputeError, NotAnImageError, StageError
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.control import CancelRequest, WatchRequest
from broker_pipeline.messages.jobs import FINAL_STATUSES, ChatMessage, JobEvent, JobRecord, JobSpec, TextPart
from broker_pipeline.messages.sampling import SamplingParams
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import TransportCounts
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.wire.transport import Transport
from tests.kit.acting_workers import ActingStage, ActingVision, frozen, right_token
from tests.kit.tiny_artifacts import tiny_artifact

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
        around = Surroundings(self.transport, self.redis, self.model, common, settings, instance)
        stopping = asyncio.Event()
        self.conductors.append(asyncio.create_task(Conductor(around).run(stopping)))
        return stopping

    async def submit(self, prompt: str = PROMPT, job_id: str = "", **sampling: object) -> str:
        fields = {"max_tokens": 20, "ignore_eos": True} | sampling
        spec = JobSpec(
            job_id=job_id or new_job_id(),
            created_at=time.time(),
            messages=(ChatMessage(role="user", content=(TextPart(text=prompt),)),),
            sampling=SamplingParams(**fields),  # type: ignore[arg-type]
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

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def progress(self, job_ids: list[str], num_tokens: int) -> None:
        """Wait until every job has at least this many tokens in Redis."""
        async with asyncio.timeout(10):
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

    async def check_empty(self, *stages: ActingStage, timeout_s: float = 5.0) -> None:
        """Nothing is left in the queue or on the stages."""
        async with asyncio.timeout(timeout_s):
            while True:
                depth = await self.queue.depth()
                if depth.num_waiting == depth.num_in_progress == 0 and not any(stage.reserved for stage in stages):
                    return
                await asyncio.sleep(0.02)

    async def status(self, condition: Callable[[ConductorStatus], bool], timeout_s: float = 8.0) -> ConductorStatus:
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
            _, pending = await asyncio.wait(self.conductors, timeout=5)
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


@pytest.fixture
async def bench(nats_url: str, redis_url: str, namespace: str) -> AsyncIterator[Bench]:
    async with open_bench(nats_url, redis_url, namespace) as opened:
        yield opened


async def test_jobs_run_to_their_end_and_leave_nothing_behind(bench: Bench) -> None:
    stages = [await bench.stage("a", 0, 2), await bench.stage("b", 2, 4), await bench.stage("c", 4, 6)]
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(30)]
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    await bench.check_empty(*stages)
    assert {record.attempt for record in records} == {1}
    assert max(stages[0].batch_sizes) > 3, "sessions share microbatches"
    counts = await bench.store.counts()
    assert (counts.succeeded, counts.running, counts.queued) == (30, 0, 0)


async def test_events_tell_a_jobs_life_in_order(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    await bench.vision()
    events: list[JobEvent] = []
    subject = subjects.job_events(bench.namespace, "*")
    async with bench.transport.subscribe(subject, JobEvent) as messages:
        bench.conductor()
        await bench.status(lambda status: len(status.routes) == 1)
        job_id = new_job_id()
        request = WatchRequest(job_ids=(job_id,), for_s=10.0)
        await bench.transport.publish(subjects.watch(bench.namespace), request)
        await bench.submit(job_id=job_id)
        async for message in messages:
            events.append(message.body)
            if message.body.kind == "finished":
                break
    assert events[0].kind == "started"
    tokens = [event for event in events if event.kind == "tokens"]
    assert [event.index for event in tokens] == [sum(len(e.tokens) for e in tokens[:n]) for n in range(len(tokens))]
    assert sum(len(event.tokens) for event in tokens) == 20
    assert events[0].record is not None
    assert events[0].record.status == "running"
    assert events[-1].record == await bench.store.get(job_id)


async def test_of_a_job_that_nobody_watches_only_the_end_is_told(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 1)
    subject = subjects.job_events(bench.namespace, "*")
    async with bench.transport.subscribe(subject, JobEvent) as messages:
        past = WatchRequest(is_for_all=True, for_s=0.01)
        await bench.transport.publish(subjects.watch(bench.namespace), past)
        await asyncio.sleep(0.1)
        job_id = await bench.submit()
        event = (await anext(messages)).body
    assert (event.job_id, event.kind, event.record) == (job_id, "finished", None)
    await bench.check_right([job_id])


async def test_status_shows_workers_routes_and_why_one_is_refused(bench: Bench) -> None:
    await bench.stage("a", 0, 3)
    await bench.stage("b", 3, 6)
    await bench.stage("wrong", 3, 6, fingerprint="0" * 64)
    await bench.vision()
    bench.conductor()
    status = await bench.status(lambda status: len(status.routes) == 1 and bool(status.vision))
    assert [route.workers for route in status.routes] == [("a", "b")]
    assert {stage.worker for stage in status.stages} == {"a", "b"}
    assert [vision.worker for vision in status.vision] == ["vision-0"]
    (refused,) = status.refused
    assert refused.worker == "wrong"
    assert "its artifact is 000000000000" in refused.reason
    assert status.waits_for is None
    assert status.instance == "c0"


async def test_status_counts_the_messages_that_broke_the_contract_by_process(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 1)
    await bench.transport.publish(subjects.heartbeats(bench.namespace, "main"), WatchRequest(for_s=1.0))
    counted = TransportCounts(num_malformed=1)  # of both: they share a transport here
    await bench.status(lambda status: status.transport == {"conductor": counted, "a": counted})


async def test_without_a_route_jobs_stay_in_the_queue_and_status_says_why(bench: Bench) -> None:
    await bench.stage("a", 0, 3)
    await bench.vision()
    bench.conductor()
    job_id = await bench.submit()
    status = await bench.status(lambda status: len(status.stages) == 1 and status.num_jobs_waiting == 1)
    assert [(gap.start, gap.stop) for gap in status.missing_blocks] == [(3, 6)]
    assert status.waits_for == "no route covers the whole model"
    assert (await bench.store.get(job_id)).status == "queued"
    await bench.stage("b", 3, 6)
    await bench.wait([job_id])
    await bench.check_right([job_id])


async def test_a_stage_that_dies_costs_a_replay_and_the_other_route_never_notices(bench: Bench) -> None:
    stages = [await bench.stage(name, start, stop, step_s=0.01)
              for name, start, stop in [("a0", 0, 3), ("a1", 0, 3), ("b0", 3, 6), ("b1", 3, 6)]]  # fmt: skip
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 2)
    job_ids = [await bench.submit(max_tokens=60) for _ in range(16)]
    await bench.progress(job_ids, 5)
    on_victim = set(stages[0].reserved)
    assert 0 < len(on_victim) < 16
    await stages[0].die()
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert {record.job_id for record in records if record.attempt > 1} == on_victim
    await bench.check_empty(*stages[1:])


async def test_a_stage_that_comes_back_under_its_name_serves_again(bench: Bench) -> None:
    first = await bench.stage("a", 0, 3, step_s=0.01)
    b = await bench.stage("b", 3, 6)
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit(max_tokens=40) for _ in range(8)]
    await bench.progress(job_ids, 5)
    await first.die()
    second = await bench.stage("a", 0, 3)
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    await bench.check_empty(second, b)


async def test_a_frozen_stage_is_fenced_and_rejoins_with_its_kv_accounted_for(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, step_s=0.01, kv=1000)
    b = await bench.stage("b", 3, 6)
    spare = await bench.stage("spare", 0, 3, kv=1000)
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 2)
    job_ids = [await bench.submit(max_tokens=60) for _ in range(10)]
    await bench.progress(job_ids, 5)
    assert a.reserved
    with frozen(a):
        await bench.wait(job_ids)
        await bench.check_right(job_ids)
        status = await bench.status(lambda s: any(stage.state == "suspended" for stage in s.stages))
        assert [route.workers for route in status.routes] == [("spare", "b")]
    await bench.status(lambda s: all(stage.state == "ready" for stage in s.stages) and len(s.routes) == 2)
    await bench.check_empty(a, b, spare)
    more = [await bench.submit() for _ in range(6)]
    await bench.wait(more)
    await bench.check_right(more)


async def test_a_stage_that_hangs_computing_is_suspended_by_its_deadline(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.005)
    await bench.vision()
    bench.conductor(deadline_s=0.5)
    job_ids = [await bench.submit(max_tokens=40) for _ in range(4)]
    await bench.progress(job_ids, 5)
    a.is_hung = True
    await bench.status(lambda s: [stage.state for stage in s.stages] == ["suspended"])
    a.is_hung = False
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    await bench.check_empty(a)


async def test_envelopes_lost_on_their_way_are_found_missing_before_their_deadline(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, step_s=0.005)
    b = await bench.stage("b", 3, 6, step_s=0.005)
    await bench.vision()
    bench.conductor(deadline_s=60.0)
    job_ids = [await bench.submit(max_tokens=40) for _ in range(4)]
    await bench.progress(job_ids, 5)
    b.num_to_lose = 2
    started = time.monotonic()
    await bench.wait(job_ids)
    assert time.monotonic() - started < 10
    await bench.check_right(job_ids)
    await bench.check_empty(a, b)


async def test_poison_costs_its_own_job_only(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3)
    b = await bench.stage("b", 3, 6)
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(6)]
    bad = await bench.submit()
    b.poison.add(bad)
    job_ids += [await bench.submit() for _ in range(6)]
    *_, record = await bench.wait([*job_ids, bad])
    await bench.check_right(job_ids)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "retries_exhausted"
    assert "poisoned" in record.error.message
    await bench.check_empty(a, b)


async def test_missing_rows_are_asked_for_again(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6)
    vision = await bench.vision()
    job_id = await bench.submit()
    a.rowless.add(job_id)
    bench.conductor()
    await bench.wait([job_id])
    await bench.check_right([job_id])
    await bench.check_empty(a)
    assert a.opens.count(job_id) == 2
    assert len(vision.requests) >= 1


async def test_a_wrong_input_fails_as_what_it_is_at_once(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    vision = await bench.vision()
    vision.failures["broken"] = NotAnImageError("no image", field="messages[0].content[0]").to_failure()
    bench.conductor()
    good, bad = await bench.submit(), await bench.submit("a broken picture")
    records = await bench.wait([good, bad])
    assert [record.status for record in records] == ["succeeded", "failed"]
    assert records[1].error == vision.failures["broken"]
    assert records[1].attempt == 1
    await bench.check_empty()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field"),
    [("x" * 200, 100, "messages"), ("x" * 300, None, "messages"), ("x", 5000, "sampling.max_tokens")],
)
async def test_what_no_route_can_hold_fails_with_its_reason(
    bench: Bench, prompt: str, max_tokens: int | None, field: str
) -> None:
    await bench.stage("a", 0, 6, kv=256)
    await bench.vision()
    bench.conductor()
    good, bad = await bench.submit(), await bench.submit(prompt, max_tokens=max_tokens)
    records = await bench.wait([good, bad])
    assert [record.status for record in records] == ["succeeded", "failed"]
    assert records[1].error is not None
    assert (records[1].error.code, records[1].error.field) == ("prompt_too_long", field)


async def test_the_default_output_limit_is_cut_to_what_fits(bench: Bench) -> None:
    await bench.stage("a", 0, 6, kv=210)
    await bench.vision()
    bench.conductor()
    short, long = await bench.submit(max_tokens=None), await bench.submit("x" * 200, max_tokens=None)
    records = await bench.wait([short, long])
    num_output = [record.result.usage.num_output_tokens for record in records if record.result]
    assert num_output == [32, 10]


async def test_stop_strings_and_log_of_text(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    plain = await bench.submit()
    (record,) = await bench.wait([plain])
    assert record.result is not None
    text = record.result.text
    stopped = await bench.submit(stop=(text[3:5],))
    (record,) = await bench.wait([stopped])
    assert record.result is not None
    own = "".join(entry.text for entry in await bench.store.tokens(stopped))
    assert record.result.text == own
    assert text[3:5] not in own


async def test_a_cancelled_job_stops_with_the_text_so_far(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.02)
    await bench.vision()
    bench.conductor()
    job_id, other = await bench.submit(max_tokens=500), await bench.submit()
    await bench.progress([job_id], 5)
    await bench.store.request_cancel(job_id)
    await bench.transport.publish(subjects.cancel(bench.namespace), CancelRequest(job_id=job_id))
    (record,) = await bench.wait([job_id], timeout_s=2.0)
    assert record.status == "cancelled"
    assert record.result is not None
    assert record.result.finish_reason == "cancelled"
    entries = await bench.store.tokens(job_id)
    assert 5 <= len(entries) < 100
    assert record.result.text == "".join(entry.text for entry in entries)
    await bench.wait([other])
    await bench.check_right([other])
    await bench.check_empty(a)


async def test_a_vision_worker_that_vanishes_is_replaced_by_another(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    first = await bench.vision("vision-0")
    first.is_hung = True
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(4)]
    await bench.until(lambda: len(first.requests) == 4)
    second = await bench.vision("vision-1")
    await first.die()
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert len(second.requests) == 4


async def test_vision_requests_go_to_the_least_loaded_worker(bench: Bench) -> None:
    await bench.stage("a", 0, 6, kv=16_384)
    workers = [await bench.vision("vision-0"), await bench.vision("vision-1")]
    for worker in workers:
        worker.is_hung = True
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(8)]
    await bench.until(lambda: sum(len(worker.requests) for worker in workers) == 8)
    assert [len(worker.requests) for worker in workers] == [4, 4]
    for worker in workers:
        worker.is_hung = False
    await bench.wait(job_ids)


async def test_a_vision_worker_that_always_fails_ends_the_job_after_bounded_tries(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    vision = await bench.vision()
    vision.failures["hard"] = ComputeError("tower out of memory").to_failure()
    vision.failures["odd"] = StageError("rows were not taken").to_failure()
    bench.conductor(max_attempts=2)
    hard, odd, good = await bench.submit("hard"), await bench.submit("odd"), await bench.submit()
    records = await bench.wait([hard, odd, good])
    assert [record.status for record in records] == ["failed", "failed", "succeeded"]
    assert all(record.error and record.error.code == "retries_exhausted" for record in records[:2])


async def test_a_standby_takes_over_and_resumes_from_the_tokens_in_redis(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, step_s=0.01)
    b = await bench.stage("b", 3, 6)
    await bench.vision()
    bench.conductor("c0", lease_ttl_s=1.0)
    await bench.status(lambda status: status.instance == "c0")
    bench.conductor("c1", lease_ttl_s=1.0)
    job_ids = [await bench.submit(max_tokens=60) for _ in range(8)]
    await bench.progress(job_ids, 10)
    first_epoch = a.epoch
    await _kill(bench, 0)
    records = await bench.wait(job_ids, timeout_s=20)
    await bench.check_right(job_ids)
    assert a.epoch > first_epoch
    assert all(record.attempt >= 2 for record in records)
    await bench.check_empty(a, b)


async def _kill(bench: Bench, index: int) -> None:
    """End a conductor as SIGKILL would: it releases nothing and requeues nothing."""
    task = bench.conductors[index]
    key = redis_keys.lease(bench.namespace, "main")
    holder = await bench.redis.get(key)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await bench.redis.set(key, holder, px=500, nx=True)  # what a killed one would have left


async def test_stopping_finishes_what_is_computed_and_puts_the_rest_back(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, kv=300, step_s=0.005)
    await bench.vision()
    stopping = bench.conductor()
    job_ids = [await bench.submit(max_tokens=60) for _ in range(12)]
    await bench.until(lambda: len(a.reserved) == 3)
    stopping.set()
    await asyncio.wait_for(bench.conductors[0], 5)
    records = [await bench.store.get(job_id) for job_id in job_ids]
    num_done = sum(record.status == "succeeded" for record in records)
    assert 3 <= num_done < 12
    bench.conductor("c1")
    await bench.wait(job_ids, timeout_s=10)
    await bench.check_right(job_ids)
    await bench.check_empty(a)


async def test_stopping_puts_back_what_is_not_done_at_the_deadline(bench: Bench) -> None:
    await bench.stage("a", 0, 6, step_s=0.02)
    await bench.vision()
    stopping = bench.conductor(drain_s=2.0)
    job_id = await bench.submit(max_tokens=150)
    await bench.progress([job_id], 3)
    started = time.monotonic()
    stopping.set()
    await asyncio.wait_for(bench.conductors[0], 5)
    assert time.monotonic() - started < 2.0
    assert await bench.redis.get(redis_keys.lease(bench.namespace, "main")) is None
    bench.conductor("c1")
    await bench.wait([job_id])
    await bench.check_right([job_id])


async def test_a_job_that_redis_has_finished_is_acknowledged_and_skipped(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6)
    await bench.vision()
    job_id = await bench.submit()
    attempt = await bench.store.begin_attempt(bench.specs[job_id])
    assert await bench.store.finish(job_id, attempt.number, "cancelled")
    bench.conductor()
    await bench.check_empty(a)
    assert (await bench.store.get(job_id)).status == "cancelled"
    assert a.opens == []


async def test_tokens_that_redis_refuses_lead_to_another_attempt(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.01)
    await bench.vision()
    bench.conductor()
    job_id = await bench.submit(max_tokens=50)
    await bench.progress([job_id], 5)
    await bench.store.begin_attempt(bench.specs[job_id])
    (record,) = await bench.wait([job_id])
    await bench.check_right([job_id])
    assert record.attempt >= 3
    await bench.check_empty(a)


async def test_a_job_delivered_too_often_fails(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    await bench.vision()
    job_id = await bench.submit()
    async with JobQueue(bench.transport, bench.namespace) as queue:
        for _ in range(3):
            delivery = await queue.pull(5)
            assert delivery is not None
            await delivery.retry()
    bench.conductor(max_deliveries=3)
    (record,) = await bench.wait([job_id])
    assert record.error is not None
    assert record.error.code == "retries_exhausted"
    await bench.check_empty()


async def test_kv_room_bounds_what_runs_and_nothing_starves(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, kv=200)
    b = await bench.stage("b", 3, 6, kv=400)
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit(max_tokens=10 + index % 50) for index in range(40)]
    await bench.wait(job_ids, timeout_s=30)
    await bench.check_right(job_ids)
    await bench.check_empty(a, b)


async def test_nats_restarts_and_everything_goes_on(own_nats: EmbeddedNats, redis_url: str, namespace: str) -> None:
    async with open_bench(own_nats.url, redis_url, namespace) as bench:
        a = await bench.stage("a", 0, 3, step_s=0.01)
        b = await bench.stage("b", 3, 6)
        await bench.vision()
        bench.conductor(deadline_s=30.0)
        job_ids = [await bench.submit(max_tokens=60) for _ in range(12)]
        await bench.progress(job_ids, 5)
        own_nats.kill()
        await asyncio.sleep(0.5)
        await own_nats.restart()
        started = time.monotonic()
        await bench.wait(job_ids, timeout_s=25)
        assert time.monotonic() - started < 15, "replays begin at once, not at the deadline"
        await bench.check_right(job_ids)
        await bench.check_empty(a, b, timeout_s=15)


async def test_redis_restarts_and_everything_goes_on(nats_url: str, own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_bench(nats_url, own_redis.url, namespace) as bench:
        a = await bench.stage("a", 0, 3, step_s=0.01)
        b = await bench.stage("b", 3, 6)
        await bench.vision()
        bench.conductor(lease_ttl_s=3.0)
        job_ids = [await bench.submit(max_tokens=60) for _ in range(12)]
        await bench.progress(job_ids, 5)
        own_redis.kill()
        await asyncio.sleep(0.5)
        await own_redis.restart()
        await bench.wait(job_ids, timeout_s=25)
        await bench.check_right(job_ids)
        await bench.check_empty(a, b, timeout_s=15)


async def test_redis_wiped_runs_the_jobs_again(nats_url: str, own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_bench(nats_url, own_redis.url, namespace) as bench:
        a = await bench.stage("a", 0, 3, step_s=0.01)
        b = await bench.stage("b", 3, 6)
        await bench.vision()
        bench.conductor()
        job_ids = [await bench.submit(max_tokens=60) for _ in range(12)]
        await bench.progress(job_ids, 5)
        await bench.redis.flushall()
        await bench.until(lambda: bool(a.reserved), timeout_s=15)
        async with asyncio.timeout(25):
            while (await bench.store.counts()).succeeded < 12:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await bench.check_right(job_ids)
        await bench.check_empty(a, b, timeout_s=15)
