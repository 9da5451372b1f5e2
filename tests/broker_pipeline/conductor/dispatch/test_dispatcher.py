"""Plan, send, complete, and what does not come back: over a real NATS, at a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from broker_pipeline import subjects
from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.errors import ComputeError, LeaseLostError, SlowConsumerError, StaleEpochError, TransportError
from broker_pipeline.messages.activation import Envelope
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import Lost, PlannedBatch
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.stage_side import EPOCH, FINGERPRINT, StageSide, answer, record
from tests.kit.waiting import eventually

LIMITS = SchedulerLimits(suspect_s=2.0, grace_s=0.5, deadline_s=30.0, first_deadline_s=180.0)


class Dispatching(StageSide):
    def __init__(self, transport: Transport, redis: RedisClient, namespace: str) -> None:
        super().__init__(LIMITS)
        self.transport, self.namespace = transport, namespace
        self._committer = self.committer(transport, redis, namespace)
        self.dispatcher = Dispatcher(
            transport=transport,
            builder=EnvelopeBuilder("main", FINGERPRINT, EPOCH, subjects.results(namespace, "main", "c")),
            scheduler=self.scheduler,
            workers=self.workers,
            generations=self.generations,
            committer=self._committer,
            plan_due=self.plan_due,
            clock=self.clock,
        )

    def join(self, name: str = "a", start: int = 0, stop: int = 6) -> WorkerRecord:
        worker = record(f"{name}-{self.namespace}", start, stop)
        self.workers.join(worker)
        return worker

    def begin(self, name: str = "job", *, max_tokens: int = 5) -> Generation:
        return self.start(name, self._committer, max_tokens=max_tokens)

    def one(self) -> PlannedBatch:
        (microbatch,) = self.dispatcher.plan()
        return microbatch

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.dispatcher.run())
        yield task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def it(transport: Transport, redis: RedisClient, namespace: str) -> Dispatching:
    return Dispatching(transport, redis, namespace)


async def lost(generation: Generation) -> Lost:
    """Return why a generation was lost; it must be by now."""
    async with asyncio.timeout(0):
        outcome = await generation.ended()
    assert outcome is not None, "it has ended well"
    return outcome


def is_under_way(generation: Generation) -> bool:
    return not generation._ended.done()


# --- a step ---------------------------------------------------------------------------------------------------------


async def test_a_session_goes_from_its_prompt_to_its_limit(it: Dispatching) -> None:
    it.join()
    generation = it.begin(max_tokens=3)
    for num_tokens in (1, 2, 3):
        it.dispatcher.complete(answer(it.one()))
        assert len(generation.output.token_ids) == num_tokens
    assert await generation.ended() is None
    assert it.generations.num_tokens == 3
    (closing,) = it.dispatcher.plan()
    assert [close.session.session for close in closing.closes] == ["job"], "its KV is given up"


async def test_what_is_planned_reaches_the_first_stage_and_its_answer_comes_back(it: Dispatching) -> None:
    a = it.join()
    generation = it.begin(max_tokens=2)
    async with it.transport.subscribe(subjects.work(a.subject), Envelope) as envelopes, it.running():
        for _ in range(2):
            envelope = (await anext(envelopes)).body
            assert (envelope.epoch, envelope.fingerprint) == (EPOCH, FINGERPRINT)
            microbatch = next(each for each in it.scheduler.batches._in_flight if each.number == envelope.microbatch)
            await it.transport.publish(envelope.reply, answer(microbatch))
        async with asyncio.timeout(5):
            assert await generation.ended() is None


async def test_a_result_from_elsewhere_than_the_microbatchs_route_is_ignored(it: Dispatching) -> None:
    a = it.join()
    generation = it.begin(max_tokens=1)
    async with it.transport.subscribe(subjects.work(a.subject), Envelope) as envelopes, it.running():
        envelope = (await anext(envelopes)).body
        (microbatch,) = it.scheduler.batches._in_flight
        root, _, token = envelope.reply.rpartition(".")
        forged = msgspec.structs.replace(answer(microbatch), failure=StaleEpochError("forged").to_failure())
        for guess in ("0" * len(token), it.dispatcher.builder.reply_to(microbatch.number + 1).rpartition(".")[2]):
            await it.transport.publish(f"{root}.{guess}", forged)
        await it.transport.publish(envelope.reply, answer(microbatch))
        async with asyncio.timeout(5):
            assert await generation.ended() is None


async def test_nothing_is_sent_while_the_broker_is_being_found_again(it: Dispatching) -> None:
    a = it.join()
    it.workers.pause()
    generation = it.begin()
    async with it.transport.subscribe(subjects.work(a.subject), Envelope) as envelopes, it.running():
        await eventually(lambda: not it.plan_due.is_set())
        assert len(it.scheduler.batches) == 0
        it.workers.resume(TransportError("the broker was away"), it.workers.vision.clock())
        assert (await lost(generation)).failure.message == "the broker was away"
        it.workers.ask(a.instance)
        async with asyncio.timeout(5):
            assert (await anext(envelopes)).body.segments == (), "the stage has to answer before it computes"


# --- answers that are not wanted ------------------------------------------------------------------------------------


async def test_an_answer_of_another_epoch_changes_nothing(it: Dispatching) -> None:
    it.join()
    generation = it.begin()
    microbatch = it.one()
    it.dispatcher.complete(answer(microbatch, epoch=EPOCH - 1))
    assert generation.output.token_ids == []
    it.dispatcher.complete(answer(microbatch))
    assert len(generation.output.token_ids) == 1, "the right one is still waited for"


async def test_a_late_answer_to_what_was_given_up_is_for_nobody(it: Dispatching) -> None:
    it.join()
    generation = it.begin()
    microbatch = it.one()
    it.generations.give_up(microbatch.number, ComputeError("given up"))
    it.dispatcher.complete(answer(microbatch))
    assert generation.output.token_ids == []
    assert (await lost(generation)).failure.message == "given up"


async def test_an_answer_for_a_session_that_nobody_wants_any_more_is_ignored(it: Dispatching) -> None:
    it.join()
    unwanted, other = it.begin("unwanted"), it.begin("other")
    planned = it.dispatcher.plan()
    it.generations.stop("unwanted")
    for microbatch in planned:
        it.dispatcher.complete(answer(microbatch))
    assert (len(unwanted.output.token_ids), len(other.output.token_ids)) == (0, 1)


async def test_a_stage_that_obeys_a_newer_conductor_ends_the_tenure(it: Dispatching) -> None:
    it.join()
    it.begin()
    refusal = answer(it.one(), failure=StaleEpochError("epoch 8 is known").to_failure())
    with pytest.raises(LeaseLostError, match="obeys another conductor: epoch 8 is known"):
        it.dispatcher.complete(refusal)


# --- failures -------------------------------------------------------------------------------------------------------


async def test_a_microbatch_that_fails_is_every_sessions_loss_and_may_be_its_fault(it: Dispatching) -> None:
    it.join()
    generation = it.begin()
    it.dispatcher.complete(answer(it.one(), failure=ComputeError("out of memory").to_failure(), tokens=()))
    outcome = await lost(generation)
    assert (outcome.failure.code, outcome.is_blamed) == ("compute", True)


async def test_a_session_that_fails_leaves_its_neighbours_alone(it: Dispatching) -> None:
    it.join("first", 0, 6)
    bad = it.begin("bad")
    microbatch = it.one()
    good = it.begin("good")
    other = it.one()
    it.dispatcher.complete(answer(microbatch, spoilt=ComputeError("not finite").to_failure()))
    it.dispatcher.complete(answer(other))
    assert (await lost(bad)).failure.message == "not finite"
    assert len(good.output.token_ids) == 1


async def test_what_cannot_be_sent_is_lost_and_nobodys_fault(nats_url: str, redis: RedisClient, namespace: str) -> None:
    async with Transport.open(nats_url, name="narrow", max_message_bytes=64) as narrow:
        it = Dispatching(narrow, redis, namespace)
        it.join()
        generation = it.begin()
        await it.dispatcher.send(it.one())
    outcome = await lost(generation)
    assert (outcome.failure.code, outcome.is_blamed) == ("payload_too_large", False)
    assert len(it.scheduler.batches) == 0


async def test_a_dropped_answer_is_its_microbatchs_loss(it: Dispatching) -> None:
    it.join()
    generation = it.begin()
    error = SlowConsumerError("no room for 9 bytes")
    it.dispatcher.drop(error, None)
    assert is_under_way(generation), "of an answer that could not be read, the deadline tells"
    it.dispatcher.drop(error, answer(it.one()))
    outcome = await lost(generation)
    assert (outcome.failure.code, outcome.is_blamed) == ("slow_consumer", False)


# --- what does not come back ----------------------------------------------------------------------------------------


async def test_a_microbatch_that_its_probe_overtakes_is_lost_after_a_grace(it: Dispatching) -> None:
    it.join()
    generation = it.begin()
    microbatch = it.one()
    it.clock.now = microbatch.suspect_at
    (probe,) = it.dispatcher.give_up_late()
    assert (probe.route, probe.segments) == (microbatch.route, ())
    it.dispatcher.complete(answer(probe))
    it.clock.pass_s(LIMITS.grace_s - 0.01)
    assert it.dispatcher.give_up_late() == [], "no second probe"
    assert is_under_way(generation), "it may have taken the slow connection"
    it.plan_due.clear()
    it.clock.pass_s(0.02)
    it.dispatcher.give_up_late()
    outcome = await lost(generation)
    assert (outcome.failure.code, outcome.is_blamed) == ("transport", False)
    assert list(it.states().values()) == ["used"], "no worker is suspended for it"
    assert it.plan_due.is_set(), "what waited behind it can go"


async def test_a_microbatch_that_comes_after_its_probe_is_taken(it: Dispatching) -> None:
    it.join()
    generation = it.begin()
    microbatch = it.one()
    it.clock.now = microbatch.suspect_at
    (probe,) = it.dispatcher.give_up_late()
    it.dispatcher.complete(answer(probe))
    it.dispatcher.complete(answer(microbatch))
    it.clock.pass_s(LIMITS.grace_s + 1)
    it.dispatcher.give_up_late()
    assert is_under_way(generation)
    assert len(generation.output.token_ids) == 1


async def test_a_probe_that_cannot_be_sent_is_followed_by_another(
    nats_url: str, redis: RedisClient, namespace: str
) -> None:
    async with Transport.open(nats_url, name="narrow", max_message_bytes=64) as narrow:
        it = Dispatching(narrow, redis, namespace)
        it.join()
        it.begin()
        it.clock.now = it.one().suspect_at
        (first,) = it.dispatcher.give_up_late()
        await it.dispatcher.send(first)
        (second,) = it.dispatcher.give_up_late()
    assert second.number > first.number


async def test_a_passed_deadline_suspends_every_worker_of_the_route(it: Dispatching) -> None:
    a, b = it.join("a", 0, 3), it.join("b", 3, 6)
    generation = it.begin()
    microbatch = it.one()
    it.clock.now = microbatch.deadline - 0.01
    it.dispatcher.give_up_late()
    assert is_under_way(generation)
    it.clock.pass_s(0.02)
    it.dispatcher.give_up_late()
    assert it.states() == {a.worker: "suspended", b.worker: "suspended"}
    outcome = await lost(generation)
    assert (outcome.failure.code, outcome.is_blamed) == ("deadline_exceeded", True)
    assert "(4 tokens) was not answered within 180.0 s" in outcome.failure.message


async def test_a_suspended_worker_that_answers_what_it_was_asked_alone_is_used_again(it: Dispatching) -> None:
    a, b = it.join("a", 0, 3), it.join("b", 3, 6)
    it.workers.suspend(a.instance, ComputeError("silent"))
    it.workers.suspend(b.instance, ComputeError("silent"))
    it.workers.ask(a.instance)
    asking = it.one()
    assert asking.segments == ()
    it.dispatcher.complete(answer(asking))
    assert it.states() == {a.worker: "used", b.worker: "suspended"}
