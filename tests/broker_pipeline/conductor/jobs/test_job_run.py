"""What one job goes through, attempt by attempt: real queue, real Redis; the test is the stages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import cast

import msgspec
import pytest

from broker_pipeline import redis_keys
from broker_pipeline.conductor.jobs.generation_builder import GenerationBuilder, PrepareTerms
from broker_pipeline.conductor.jobs.job_end import JobEnds, Stores
from broker_pipeline.conductor.jobs.job_run import JobRunner, RunLimits
from broker_pipeline.conductor.jobs.live_job import LiveJob, LiveJobs
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.workers.preparer import Preparer
from broker_pipeline.errors import ComputeError, StageError
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.messages.jobs import ChatMessage, Choice, FinishReason, JobRecord, JobSpec, TextPart, TokenEntry
from broker_pipeline.messages.sampling import RepetitionDetection, SamplingParams
from broker_pipeline.scheduling.drafts.limits import DraftLimits
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedBatch
from broker_pipeline.scheduling.policies.admission import Admission, AdmissionLimits
from broker_pipeline.scheduling.policies.retries import RetryLimits, RetryPolicy
from broker_pipeline.scheduling.policies.sampling import as_asked, resolve_sampling, seed_of
from broker_pipeline.scheduling.session_state import PreparedPrompt
from broker_pipeline.state import persistence
from broker_pipeline.state.held_jobs import Hold
from broker_pipeline.state.job_store import JobStore, TokenCommit
from broker_pipeline.state.lease import Lease
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.jobs import JobQueue, QueueDepth
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.stage_side import EPOCH, StageSide, answer, record
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.simulated.stages import prompt_of
from tests.kit.waiting import eventually

NUM_PROMPT = 4
STAGE = record("a")

Reply = Callable[[PlannedBatch], MicrobatchResult | None]


@cache
def model() -> TextModel:
    return TextModel.open(tiny_artifact(), default_max_tokens=8)


class Running(StageSide):
    """A runner whose jobs have their prompts already, and stages that answer by `reply`."""

    def __init__(
        self, transport: Transport, redis: RedisClient, namespace: str, drafts: DraftLimits | None = None
    ) -> None:
        super().__init__(SchedulerLimits(drafts=drafts or DraftLimits()))
        self.redis, self.namespace = redis, namespace
        self.store, self.media = JobStore(redis, namespace), MediaStore(transport, redis, namespace, max_bytes=2**20)
        self.queue = JobQueue(transport, namespace, ack_wait_s=30.0)
        self.live = LiveJobs()
        self.reply: Reply = answer
        self.sent: list[PlannedBatch] = []
        self.is_lease_held = True
        self.num_lease_looks = 0
        stores, lease = Stores.open(transport, redis, namespace, Watchers()), Lease(redis, namespace, "main", "this")
        self.tokens = Committer(self.store, stores.events, self.generations.refuse)
        self.runner = JobRunner(
            live=self.live,
            stores=stores,
            builder=self._builder(transport),
            generations=self.generations,
            committer=self.tokens,
            ends=JobEnds(self.live, stores, self.tokens, model().facts),
            limits=RunLimits(
                max_deliveries=3, lease_held=self._lease_held, fence=lease.fence, requeue_s=0.0, epoch=EPOCH
            ),
        )

    def _builder(self, transport: Transport) -> GenerationBuilder:
        return GenerationBuilder(
            model=model(),
            scheduler=self.scheduler,
            workers=self.workers,
            preparer=Preparer(transport, self.workers, model().facts.vocab_size),
            committer=self.tokens,
            admission=Admission(AdmissionLimits(), expected_tokens=20),
            terms=PrepareTerms(pipeline="main", epoch=EPOCH, timeout_s=5.0, route_timeout_s=0.5),
        )

    def _lease_held(self) -> bool:
        self.num_lease_looks += 1
        return self.is_lease_held

    async def compute(self) -> None:
        """Plan and complete, as the dispatcher and its stages do."""
        while True:
            await self.plan_due.wait()
            self.plan_due.clear()
            for microbatch in self.plan():
                self.sent.append(microbatch)
                if result := self.reply(microbatch):
                    self.complete(result)
            await asyncio.sleep(0)

    def complete(self, result: MicrobatchResult) -> None:
        outcome = self.scheduler.complete(result, self.clock())
        for sampled in outcome.sampled:
            self.generations.take(sampled)
        self.generations.tell(outcome.lost)
        self.plan_due.set()

    async def submit(
        self,
        *,
        max_tokens: int | None = 5,
        num_deliveries: int = 1,
        num_prompt: int = NUM_PROMPT,
        num_outputs: int | None = None,
        **sampling: object,
    ) -> LiveJob:
        """Put a job into the queue and take it out again."""
        spec = JobSpec(
            job_id=new_job_id(),
            created_at=time.time(),
            messages=(ChatMessage(role="user", content=(TextPart(text="Describe."),)),),
            sampling=msgspec.structs.replace(
                SamplingParams(max_tokens=max_tokens, ignore_eos=True, n=num_outputs), **sampling
            ),
        )
        await self.store.create(spec)
        await self.queue.publish(spec)
        for number in range(1, num_deliveries + 1):
            delivery = await self.queue.pull(5)
            assert delivery is not None
            if number < num_deliveries:
                await delivery.retry()
        retries = RetryPolicy(RetryLimits(max_attempts=3, backoff_s=0.0))
        job = LiveJob(delivery, len(self.live), retries, prompt=prompt_of(num_prompt))
        self.live.add(job)
        return job

    async def run(self, *jobs: LiveJob) -> JobRecord:
        """Run jobs to their end and return the first one's record."""
        async with asyncio.timeout(10):
            await asyncio.gather(*map(self.runner.run, jobs))
        return await self.store.get(jobs[0].job_id)

    async def num_tokens(self, job: LiveJob) -> int:
        return len(await self.store.tokens(job.job_id))

    def num_sampled(self, job: LiveJob) -> int:
        generation = self.generations._generations.get(job.job_id)
        return len(generation.output.token_ids) if generation else -1

    async def check_gone(self) -> None:
        """Nothing is left of any job: not here, not in the queue, not on a stage."""
        await eventually(self._is_queue_empty)  # nobody waits for the server's word that a job is out
        assert len(self.live) == 0
        await eventually(lambda: self.scheduler.ledger.used_tokens(STAGE.instance) == 0)

    async def _is_queue_empty(self) -> bool:
        return await self.queue.depth() == QueueDepth(num_waiting=0, num_in_progress=0)


@asynccontextmanager
async def at_work(running: Running) -> AsyncIterator[Running]:
    await running.queue.ensure()
    await running.media.ensure()
    running.workers.join(STAGE)
    async with running.queue:
        tasks = [asyncio.create_task(running.compute()), asyncio.create_task(running.tokens.run())]
        yield running
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def it(transport: Transport, redis: RedisClient, namespace: str) -> AsyncIterator[Running]:
    async with at_work(Running(transport, redis, namespace)) as running:
        yield running


@pytest.fixture
async def drafting(transport: Transport, redis: RedisClient, namespace: str) -> AsyncIterator[Running]:
    """One that drafts up to four tokens at a time; stages say the same for ever, so that all are right."""
    async with at_work(Running(transport, redis, namespace, DraftLimits(4))) as running:
        yield running


def refuse(microbatch: PlannedBatch) -> MicrobatchResult:
    return answer(microbatch, failure=ComputeError("a bad kernel").to_failure(), tokens=())


# --- attempts -------------------------------------------------------------------------------------------------------


async def test_a_job_runs_to_its_end_and_leaves_nothing_behind(it: Running) -> None:
    job = await it.submit()
    end = await it.run(job)
    assert (end.status, end.attempt) == ("succeeded", 1)
    assert end.result is not None
    assert (end.result.finish_reason, end.result.usage.num_output_tokens) == ("length", 5)
    assert await it.num_tokens(job) == 5
    facts = model().facts
    assert (end.result.model, end.result.fingerprint, end.result.max_tokens) == (facts.name, facts.fingerprint, 5)
    obeyed = resolve_sampling(job.spec.sampling, facts.generation, job.job_id)
    assert end.result.sampling == as_asked(job.spec.sampling, obeyed)
    assert end.result.sampling.seed == seed_of(job.job_id)
    assert (it.live.num_finished["succeeded"], it.live.num_replays) == (1, 0)
    await it.check_gone()


async def test_an_attempt_that_is_lost_is_followed_by_one_that_goes_on_from_its_tokens(it: Running) -> None:
    def die_with_three(microbatch: PlannedBatch) -> MicrobatchResult | None:
        if it.num_sampled(job) != 3:
            return answer(microbatch)
        it.reply = answer
        it.workers.leave(STAGE, "it was killed")
        it.workers.join(STAGE)
        return None

    it.reply = die_with_three
    job = await it.submit()
    end = await it.run(job)
    assert (end.status, end.attempt) == ("succeeded", 2)
    assert await it.num_tokens(job) == 5
    opening = [segment for each in it.sent for segment in each.segments if segment.opens]
    assert [segment.count for segment in opening] == [NUM_PROMPT, NUM_PROMPT + 3], "the second attempt knows three more"
    assert opening[0].session.key.attempt < opening[1].session.key.attempt
    assert it.live.num_replays == 1
    await it.check_gone()


async def test_a_preemption_is_no_attempt_and_loses_no_token(it: Running) -> None:
    it.workers.leave(STAGE, "one with less KV comes")
    it.workers.join(record("small", kv_capacity_tokens=300))
    old, young = await it.submit(max_tokens=196), await it.submit(max_tokens=196)
    ends = [await it.run(old, young), await it.store.get(young.job_id)]
    assert it.scheduler.growth.num_preemptions == 1
    assert [(end.status, end.attempt) for end in ends] == [("succeeded", 1), ("succeeded", 1)]
    assert [await it.num_tokens(job) for job in (old, young)] == [196, 196]
    opening = [segment for each in it.sent for segment in each.segments if segment.opens]
    assert [segment.session.key.session for segment in opening] == [old.job_id, young.job_id, young.job_id]
    assert opening[2].count > NUM_PROMPT, "it goes on from the tokens that it had"
    assert it.live.num_replays == 0
    assert (it.live.num_finished["succeeded"], young.retries.is_alone) == (2, False)
    await eventually(lambda: it.scheduler.ledger.used_tokens("small-1") == 0)


async def test_a_job_whose_tokens_are_all_there_needs_no_stage(it: Running) -> None:
    job = await it.submit(max_tokens=3)
    attempt = await it.store.begin_attempt(job.spec, model().facts.fingerprint)
    entries = tuple(TokenEntry(token_id=32, text="A") for _ in range(3))
    assert await it.store.commit([TokenCommit(job.job_id, attempt.number, 0, entries)]) == [True]
    end = await it.run(job)
    assert (end.status, end.attempt) == ("succeeded", 2)
    assert end.result is not None
    assert end.result.text == "AAA"
    assert it.sent == []


async def test_a_failure_is_repeated_a_bounded_number_of_times(it: Running) -> None:
    it.reply = lambda microbatch: answer(microbatch, spoilt=StageError("no room").to_failure())
    end = await it.run(await it.submit())
    assert (end.status, end.attempt) == ("failed", 3)
    assert end.error is not None
    assert end.error.code == "retries_exhausted"
    assert "no room" in end.error.message
    await it.check_gone()


async def test_what_breaks_a_stage_is_tried_by_itself_and_its_neighbours_go_on(it: Running) -> None:
    good, bad = await it.submit(), await it.submit()

    def break_on_bad(microbatch: PlannedBatch) -> MicrobatchResult:
        sessions = {segment.session.key.session for segment in microbatch.segments}
        return refuse(microbatch) if bad.job_id in sessions else answer(microbatch)

    it.reply = break_on_bad
    end = await it.run(bad, good)
    assert (end.status, end.attempt) == ("failed", 2)
    assert end.error is not None
    assert "failed again when it was on its own" in end.error.message
    broken = [each for each in it.sent if any(s.session.key.session == bad.job_id for s in each.segments)]
    assert broken[-1].is_alone
    assert (await it.store.get(good.job_id)).status == "succeeded"
    await it.check_gone()


async def test_a_failure_is_judged_when_all_have_answered_who_could_try_it_too(it: Running) -> None:
    """A tenure that has just begun may know a sick stage before it knows the healthy ones."""
    healthy = record("b")
    it.workers.expect(healthy.instance)

    def answer_the_handshake() -> None:
        it.workers.join(healthy)
        it.workers.expect_no_more(healthy.instance)

    def be_sick(microbatch: PlannedBatch) -> MicrobatchResult:
        if STAGE.instance not in microbatch.route.key or not microbatch.segments:
            return answer(microbatch)
        asyncio.get_running_loop().call_later(0.05, answer_the_handshake)
        return refuse(microbatch)

    it.reply = be_sick
    end = await it.run(await it.submit())
    assert (end.status, end.attempt) == ("succeeded", 2)
    await it.check_gone()


async def test_nobody_waits_for_workers_to_come_where_another_is_there(it: Running) -> None:
    it.workers.join(record("b"))
    it.workers.expect("c-1")

    def fail_first(microbatch: PlannedBatch) -> MicrobatchResult:
        return refuse(microbatch) if it.sent == [microbatch] else answer(microbatch)

    it.reply = fail_first
    async with asyncio.timeout(1.5):
        end = await it.run(await it.submit())
    assert (end.status, end.attempt) == ("succeeded", 2)


async def test_a_bug_ends_its_own_job_only(it: Running) -> None:
    crashing, other = await it.submit(), await it.submit()
    crashing.prompt = cast("PreparedPrompt", "a bug")
    end = await it.run(crashing, other)
    assert end.status == "failed"
    assert end.error is not None
    assert end.error.message.startswith("running the job crashed: ")
    assert (await it.store.get(other.job_id)).status == "succeeded"


# --- several outputs ------------------------------------------------------------------------------------------------


def choice(num_tokens: int, reason: FinishReason = "length") -> Choice:
    return Choice(text="A" * num_tokens, finish_reason=reason, num_output_tokens=num_tokens)


async def test_several_outputs_follow_each_other_with_seeds_of_their_own(it: Running) -> None:
    job = await it.submit(num_outputs=3)
    end = await it.run(job)
    assert end.result is not None
    assert end.result.choices == (choice(5),) * 3
    assert (end.result.text, end.result.finish_reason, end.result.usage.num_output_tokens) == ("AAAAA", "length", 15)
    assert [entry.choice for entry in await it.store.tokens(job.job_id)] == [0] * 5 + [1] * 5 + [2] * 5
    opened = [segment.session for each in it.sent for segment in each.segments if segment.opens]
    assert [session.sampling.seed - opened[0].sampling.seed for session in opened] == [0, 1, 2]
    await it.check_gone()


@pytest.mark.parametrize("num_until", [0, 2, 5, 8, 10, 14])
async def test_an_attempt_goes_on_in_the_output_that_the_one_before_had_got_to(it: Running, num_until: int) -> None:
    def die(microbatch: PlannedBatch) -> MicrobatchResult | None:
        if sum(len(each.segments) for each in it.sent) != num_until + 1:
            return answer(microbatch)
        it.reply = answer
        it.workers.leave(STAGE, "it was killed")
        it.workers.join(STAGE)
        return None

    it.reply = die
    job = await it.submit(num_outputs=3)
    end = await it.run(job)
    assert (end.status, end.attempt) == ("succeeded", 2)
    assert end.result is not None
    assert end.result.choices == (choice(5),) * 3
    opening = [segment.count for each in it.sent for segment in each.segments if segment.opens]
    expected = [NUM_PROMPT] * 3
    expected.insert(num_until // 5 + 1, NUM_PROMPT + num_until % 5)
    assert opening == expected
    await it.check_gone()


@pytest.mark.parametrize("num_committed", [5, 7, 15])
async def test_outputs_that_are_complete_need_no_stage(it: Running, num_committed: int) -> None:
    job = await it.submit(num_outputs=3)
    attempt = await it.store.begin_attempt(job.spec, model().facts.fingerprint)
    entries = tuple(TokenEntry(token_id=32, text="A", choice=number // 5) for number in range(num_committed))
    assert await it.store.commit([TokenCommit(job.job_id, attempt.number, 0, entries)]) == [True]
    end = await it.run(job)
    assert end.result is not None
    assert end.result.choices == (choice(5),) * 3
    assert sum(len(each.segments) for each in it.sent) == 15 - num_committed


async def test_a_cancelled_job_has_the_outputs_that_it_got_to(it: Running) -> None:
    def cancel_with_seven(microbatch: PlannedBatch) -> MicrobatchResult | None:
        if sum(len(each.segments) for each in it.sent) <= 7:
            return answer(microbatch)
        job.cancel()
        return None

    it.reply = cancel_with_seven
    job = await it.submit(num_outputs=3)
    end = await it.run(job)
    assert end.result is not None
    assert (end.status, end.result.finish_reason, end.result.text) == ("cancelled", "cancelled", "AAAAA")
    assert end.result.choices == (choice(5), choice(2, "cancelled"))


# --- ends without an attempt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_attempts", [0, 1])
async def test_a_job_that_was_cancelled_before_it_came_here_is_not_computed(it: Running, num_attempts: int) -> None:
    job = await it.submit()
    for _ in range(num_attempts):
        await it.store.begin_attempt(job.spec, model().facts.fingerprint)
    await it.store.request_cancel(job.job_id)
    end = await it.run(job)
    assert end.status == "cancelled"
    assert it.sent == []
    await it.check_gone()


async def test_a_job_that_is_cancelled_ends_with_the_text_so_far(it: Running) -> None:
    def cancel_with_three(microbatch: PlannedBatch) -> MicrobatchResult | None:
        if it.num_sampled(job) < 3:
            return answer(microbatch)
        job.cancel()
        return None

    it.reply = cancel_with_three
    job = await it.submit()
    running = asyncio.create_task(it.run(job))
    await eventually(lambda: job.phase == "finishing")
    it.reply = answer
    for microbatch in it.sent:
        it.complete(answer(microbatch))  # the stage answers what nobody wants any more
    end = await running
    assert end.status == "cancelled"
    assert end.result is not None
    assert (end.result.finish_reason, end.result.usage.num_output_tokens) == ("cancelled", 3)
    assert end.result.text == "AAA"
    await it.check_gone()


async def test_a_job_that_waits_for_a_route_can_be_cancelled(it: Running) -> None:
    it.workers.leave(STAGE, "it was killed")
    job = await it.submit()
    running = asyncio.create_task(it.run(job))
    await eventually(lambda: job.num_attempts == 1)
    job.cancel()
    assert (await running).status == "cancelled"


async def test_a_job_delivered_too_often_fails(it: Running) -> None:
    end = await it.run(await it.submit(num_deliveries=4))
    assert end.status == "failed"
    assert end.error is not None
    assert (end.error.code, end.error.message) == ("retries_exhausted", "delivered 4 times without an end")
    assert it.sent == []
    await it.check_gone()


async def held_in_computing(it: Running, max_tokens: int) -> tuple[LiveJob, asyncio.Task[None]]:
    """Return a job that runs and whose first answer is still to come."""
    it.reply = lambda _: None
    job = await it.submit(max_tokens=max_tokens)
    running = asyncio.create_task(it.runner.run(job))
    await eventually(lambda: bool(it.sent))
    it.reply = answer
    return job, running


@pytest.mark.parametrize("max_tokens", [1, 200])
async def test_a_job_that_another_conductor_runs_as_well_is_left_to_the_later_attempt(
    it: Running, max_tokens: int
) -> None:
    job, running = await held_in_computing(it, max_tokens)
    later = await it.store.begin_attempt(job.spec, model().facts.fingerprint)
    it.complete(answer(it.sent[0]))
    async with asyncio.timeout(10):
        await running
    record = await it.store.get(job.job_id)
    assert (record.status, record.attempt) == ("running", later.number), "no attempt voids the later one"
    assert await it.queue.depth() == QueueDepth(num_waiting=0, num_in_progress=1), "it is not acknowledged"
    assert await it.queue.pull(0.3) is None, "it is not requeued while the other runs it"
    assert len(it.live) == 0
    assert it.scheduler.ledger.used_tokens(STAGE.instance) == 0


async def begun(it: Running, job: LiveJob, epoch: int) -> int:
    """Have a tenure begin a job, of the same delivery; returns its attempt."""
    hold = Hold(epoch, "", job.delivery.name)
    return (await it.store.begin_attempt(job.spec, model().facts.fingerprint, hold=hold)).number


async def test_without_the_lease_a_job_that_a_later_tenure_runs_is_left_as_it_is(it: Running) -> None:
    """The request to begin it reaches Redis when that one has taken over."""
    job = await it.submit()
    theirs = await begun(it, job, EPOCH + 1)
    await Lease(it.redis, it.namespace, "main", "successor").acquire()
    async with asyncio.timeout(10):
        await it.runner.run(job)
    assert not it.sent
    [taken] = await it.store.commit([TokenCommit(job.job_id, theirs, 0, (TokenEntry(token_id=32, text="A"),))])
    assert taken, "its attempt goes on"
    assert await it.queue.pull(1.0) is None, "it is not requeued, for a third to void that"
    assert len(it.live) == 0


@pytest.mark.parametrize("is_begun", [False, True], ids=["by nobody", "by a tenure that is over"])
async def test_without_the_lease_a_job_that_nobody_runs_goes_back_to_the_queue(it: Running, is_begun: bool) -> None:
    job = await it.submit()
    num_attempts = await begun(it, job, EPOCH - 1) if is_begun else 0
    await Lease(it.redis, it.namespace, "main", "successor").acquire()
    async with asyncio.timeout(10):
        await it.runner.run(job)
    assert (await it.store.get(job.job_id)).attempt == num_attempts
    assert await it.queue.pull(0.2) is None, "not at once: whoever lost the lease may pull still"
    again = await it.queue.pull(5.0)
    assert again is not None
    assert again.num_deliveries == 2
    assert len(it.live) == 0


async def test_a_job_whose_attempt_redis_has_lost_is_begun_anew(it: Running) -> None:
    job, running = await held_in_computing(it, max_tokens=5)
    await it.redis.hset(redis_keys.job(it.namespace, job.job_id), "attempt", 0)
    it.complete(answer(it.sent[0]))
    async with asyncio.timeout(10):
        await running
    assert (await it.store.get(job.job_id)).status == "succeeded"
    assert await it.num_tokens(job) == 5
    await it.check_gone()


async def begun_by_another(it: Running) -> LiveJob:
    """Return a job with three tokens "A" of another model."""
    job = await it.submit(max_tokens=5)
    attempt = await it.store.begin_attempt(job.spec, "f" * 64)
    entries = tuple(TokenEntry(token_id=32, text="A") for _ in range(3))
    assert await it.store.commit([TokenCommit(job.job_id, attempt.number, 0, entries)]) == [True]
    return job


async def test_a_job_that_another_model_has_begun_begins_again(it: Running) -> None:
    job = await begun_by_another(it)
    end = await it.run(job)
    assert (end.status, end.fingerprint, end.first_attempt) == ("succeeded", model().facts.fingerprint, 2)
    [opening] = [segment for each in it.sent for segment in each.segments if segment.opens]
    assert opening.count == NUM_PROMPT, "no token of the other model is computed on"
    assert await it.num_tokens(job) == 5
    await it.check_gone()


async def test_a_job_that_another_model_has_begun_fails_by_choice(it: Running) -> None:
    it.runner.limits = replace(it.runner.limits, restarts=False)
    job, fresh = await begun_by_another(it), await it.submit()
    end = await it.run(job, fresh)
    assert (end.status, end.fingerprint) == ("failed", "f" * 64)
    assert end.error is not None
    assert (end.error.code, end.error.retryable) == ("model_changed", False)
    assert "its 3 tokens are of another model (ffff" in end.error.message
    assert model().facts.fingerprint in end.error.message
    assert (await it.store.get(fresh.job_id)).status == "succeeded"
    await it.check_gone()


async def test_a_cancelled_job_that_another_model_has_begun_ends_with_its_text(it: Running) -> None:
    job = await begun_by_another(it)
    await it.store.request_cancel(job.job_id)
    end = await it.run(job)
    assert (end.status, end.fingerprint) == ("cancelled", "f" * 64)
    assert end.result is not None
    assert (end.result.text, end.result.fingerprint, end.result.model) == ("AAA", "f" * 64, None)


async def test_a_job_that_redis_has_finished_is_acknowledged_and_skipped(it: Running) -> None:
    job = await it.submit()
    attempt = await it.store.begin_attempt(job.spec, model().facts.fingerprint)
    assert await it.store.finish(job.job_id, attempt.number, "cancelled")
    end = await it.run(job)
    assert (end.status, it.sent) == ("cancelled", [])
    await it.check_gone()


async def test_a_job_that_redis_cannot_be_told_of_goes_back_into_the_queue(
    it: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "_MAX_TRIES", 0)
    job = await it.submit()
    await it.redis.config_set("min-replicas-to-write", 1)
    try:
        async with asyncio.timeout(10):
            await it.runner.run(job)
    finally:
        await it.redis.config_set("min-replicas-to-write", 0)
    assert len(it.live) == 0
    delivery = await it.queue.pull(5)
    assert delivery is not None
    assert (delivery.spec.job_id, delivery.num_deliveries) == (job.job_id, 2)


async def test_a_job_whose_row_is_garbled_ends_with_that_reason(it: Running) -> None:
    job = await it.submit()
    key = redis_keys.job(it.namespace, job.job_id)
    await it.redis.delete(key)
    await it.redis.set(key, "no job")
    record = await it.run(job)
    assert record.status == "failed"
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("garbled_state", False)
    assert "failed retry" in record.error.message
    assert await it.redis.get(f"{key}:garbled") == b"no job", "for somebody to look at"
    assert await it.store.spec(job.job_id) == job.spec, "so that it can be sent again"


@pytest.mark.parametrize("field", ["attempt", "created_at", "num_retries", "spec", "status"])
async def test_a_job_whose_row_lacks_a_field_ends(it: Running, field: str) -> None:
    job = await it.submit()
    await it.redis.hdel(redis_keys.job(it.namespace, job.job_id), field)
    async with asyncio.timeout(10):
        record = await it.run(job)
    assert record.status == "succeeded" or (record.error and record.error.code == "garbled_state"), record


async def test_no_attempt_begins_while_the_lease_is_not_held(it: Running) -> None:
    it.is_lease_held = False
    job = await it.submit()
    running = asyncio.create_task(it.run(job))
    await eventually(lambda: it.num_lease_looks > 1)
    assert (await it.store.get(job.job_id)).attempt == 0, "the holder's attempt would be void"
    it.is_lease_held = True
    assert (await running).status == "succeeded"


# --- what fits ------------------------------------------------------------------------------------------------------


async def test_a_job_that_turns_out_longer_than_its_route_takes_another(it: Running) -> None:
    it.workers.leave(STAGE, "it was killed")
    it.workers.join(record("small", kv_capacity_tokens=30))
    job = await it.submit(num_prompt=40, max_tokens=5)
    it.workers.longest_session = 100  # a larger one was here, and may come back
    running = asyncio.create_task(it.run(job))
    await eventually(lambda: job.num_kv_tokens == 45)
    it.workers.join(record("large", kv_capacity_tokens=100))
    end = await running
    assert (end.status, end.attempt) == ("succeeded", 1)
    assert {str(each.route) for each in it.sent if each.segments} == {"large"}


async def test_a_job_whose_route_never_returns_fails_with_that_reason(it: Running) -> None:
    it.workers.leave(STAGE, "it was killed")
    job = await it.submit()
    record = await it.run(job)
    assert (record.status, record.attempt) == ("failed", 1)
    assert record.error is not None
    assert record.error.code == "no_route"
    assert "--route-timeout-s" in record.error.message


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "field"), [(990, 20, "messages"), (4, 2000, "sampling.max_tokens")]
)
async def test_what_no_route_could_ever_hold_fails_with_its_reason(
    it: Running, num_prompt: int, max_tokens: int, field: str
) -> None:
    job = await it.submit(num_prompt=num_prompt, max_tokens=max_tokens)
    end = await it.run(job)
    assert end.status == "failed"
    assert end.error is not None
    assert (end.error.code, end.error.field, end.attempt) == ("prompt_too_long", field, 1)


async def test_a_limit_that_nobody_asked_for_is_cut_to_what_fits(it: Running) -> None:
    it.workers.leave(STAGE, "it was killed")
    it.workers.longest_session = 0
    it.workers.join(record("small", kv_capacity_tokens=30))
    end = await it.run(await it.submit(num_prompt=27, max_tokens=None))
    assert end.result is not None
    assert end.result.usage.num_output_tokens == 3


# --- drafts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "num_tokens", "reason"),
    [
        ({}, 21, "length"),
        ({"stop": ("AAAAAAAAAAAAAAAAA",)}, 17, "stop"),
        ({"repetition_detection": RepetitionDetection(max_pattern_size=1, min_count=15)}, 15, "repetition"),
    ],
    ids=["max_tokens", "a stop string", "a repetition"],
)
async def test_an_end_among_accepted_drafts_is_the_end(
    drafting: Running, sampling: dict[str, object], num_tokens: int, reason: str
) -> None:
    job = await drafting.submit(max_tokens=21, **sampling)
    end = await drafting.run(job)
    assert end.result is not None
    assert (end.result.finish_reason, end.result.usage.num_output_tokens) == (reason, num_tokens)
    assert await drafting.num_tokens(job) == num_tokens == drafting.generations.num_tokens
    assert drafting.scheduler.batches.drafting.num_accepted >= 8
    assert sum(bool(each.segments) for each in drafting.sent) < num_tokens
    await drafting.check_gone()


async def test_drafts_end_with_one_output_and_begin_with_the_next(drafting: Running) -> None:
    job = await drafting.submit(max_tokens=9, num_outputs=3)
    end = await drafting.run(job)
    assert end.result is not None
    assert [choice.num_output_tokens for choice in end.result.choices] == [9, 9, 9]
    assert drafting.scheduler.batches.drafting.num_accepted >= 3 * 4
    await drafting.check_gone()


async def test_an_attempt_that_is_lost_among_drafts_goes_on_from_what_was_accepted(drafting: Running) -> None:
    def die_with_drafts(microbatch: PlannedBatch) -> MicrobatchResult | None:
        if drafting.num_sampled(job) < 8 or not any(segment.drafts for segment in microbatch.segments):
            return answer(microbatch)
        drafting.reply = answer
        known.append(drafting.num_sampled(job))
        drafting.workers.leave(STAGE, "it was killed")
        drafting.workers.join(STAGE)
        return None

    known: list[int] = []
    drafting.reply = die_with_drafts
    job = await drafting.submit(max_tokens=30)
    end = await drafting.run(job)
    assert (end.status, end.attempt) == ("succeeded", 2)
    assert await drafting.num_tokens(job) == 30
    second = [segment for each in drafting.sent for segment in each.segments if segment.opens][1]
    assert (second.count, second.drafts) == (NUM_PROMPT + known[0], ())
    await drafting.check_gone()


def say_the_prompt(microbatch: PlannedBatch) -> MicrobatchResult:
    result = answer(microbatch)
    tokens = [msgspec.structs.replace(token, token_id=token.position % NUM_PROMPT) for token in result.tokens]
    return msgspec.structs.replace(result, tokens=tuple(tokens))


async def test_an_end_token_among_accepted_drafts_is_the_end(drafting: Running) -> None:
    drafting.reply = say_the_prompt
    job = await drafting.submit(max_tokens=21, stop_token_ids=(3,))
    end = await drafting.run(job)
    assert end.result is not None
    assert (end.result.finish_reason, end.result.usage.num_output_tokens) == ("stop", 4)
    assert [entry.token_id for entry in await drafting.store.tokens(job.job_id)] == [0, 1, 2, 3]
    assert drafting.sent[2].segments[0].drafts == (2, 3, 0, 1)
    await drafting.check_gone()
