"""Handshakes, heartbeats and the registry, over a real NATS and a real Redis."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from broker_pipeline import subjects
from broker_pipeline.conductor.workers.roster import Roster, RosterTimes
from broker_pipeline.conductor.workers.roster_watch import RosterWatch
from broker_pipeline.errors import ContractError, LeaseLostError, PipelineError, StageError, StaleEpochError
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.edges import PeerLost
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.scheduling.routes import PipelineIdentity
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.wire.transport import Received, Transport
from tests.kit.acting.stage_side import EPOCH, FINGERPRINT, NUM_LAYERS, StageSide, record
from tests.kit.waiting import eventually

TIMES = RosterTimes(poll_s=0.01, watch_s=0.01, hello_timeout_s=0.05, standstill_s=math.inf)

Reply = Callable[[Received[Hello]], Awaitable[None]]


def refusing(error: PipelineError) -> Reply:
    async def reply(message: Received[Hello]) -> None:
        message.refuse(error)

    return reply


class Watched(StageSide):
    def __init__(self, transport: Transport, redis: RedisClient, namespace: str) -> None:
        super().__init__()
        self.transport, self.namespace = transport, namespace
        identity = PipelineIdentity(pipeline="main", fingerprint=FINGERPRINT, dtype="float32", num_layers=NUM_LAYERS)
        self.registry = WorkerRegistry(redis, namespace, "main")
        self.roster = Roster(self.workers, identity, TIMES, self.clock)
        self.watch = RosterWatch(
            roster=self.roster,
            transport=transport,
            registry=self.registry,
            share="",
            hello=Hello(pipeline="main", epoch=EPOCH),
            heartbeat_subject=subjects.heartbeats(namespace, "main"),
            lost_peers_subject=subjects.lost_peers(namespace, "main"),
            times=TIMES,
        )

    def record(self, name: str, **facts: object) -> WorkerRecord:
        made = record(f"{name}-{self.namespace}", **facts)
        root = subjects.worker_root(self.namespace, "main", made.role, made.worker, made.instance)
        return msgspec.structs.replace(made, subject=root)

    @asynccontextmanager
    async def answering(self, worker: WorkerRecord, reply: Reply) -> AsyncIterator[None]:
        """Have a worker listen, and answer every hello like this."""

        async def answer() -> None:
            async for message in hellos:
                await reply(message)

        async with self.transport.subscribe(subjects.control(worker.subject), Hello) as hellos:
            task = asyncio.create_task(answer())
            yield
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def miss(self, worker: WorkerRecord) -> None:
        """Report, as another worker does, that an edge to this one has ended."""
        await self.transport.publish(self.watch.lost_peers_subject, PeerLost(root=worker.subject))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.watch.run())
        yield task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def watched(transport: Transport, redis: RedisClient, namespace: str) -> Watched:
    return Watched(transport, redis, namespace)


async def test_who_answers_a_hello_of_this_epoch_joins(watched: Watched) -> None:
    a, epochs = watched.record("a"), []

    async def reply(message: Received[Hello]) -> None:
        epochs.append(message.body.epoch)
        await message.respond(HelloReply(record=a))

    async with watched.answering(a, reply):
        await watched.watch.shake_hands(a)
    assert epochs == [EPOCH]
    assert watched.states() == {a.worker: "used"}


async def test_who_does_not_listen_or_not_answer_does_not_join(watched: Watched) -> None:
    deaf, slow = watched.record("deaf"), watched.record("slow")

    async def say_nothing(_: Received[Hello]) -> None:
        return

    watched.roster.look([deaf, slow])
    await watched.watch.shake_hands(deaf)
    async with watched.answering(slow, say_nothing):
        await watched.watch.shake_hands(slow)
    assert watched.roster.members == ()
    assert watched.roster.look([deaf, slow]) == [deaf, slow], "both get another handshake"


@pytest.mark.parametrize("error", [ContractError("this worker serves pipeline other"), StageError("not now")])
async def test_who_refuses_does_not_join(watched: Watched, error: ContractError | StageError) -> None:
    a = watched.record("a")
    watched.roster.look([a])
    async with watched.answering(a, refusing(error)):
        await watched.watch.shake_hands(a)
    assert watched.roster.members == ()
    reasons = [refused.reason for refused in watched.roster.refused]
    what = "refuses this conductor" if isinstance(error, ContractError) else "does not answer the handshake"
    assert reasons == [f"{what}: {error.message}"]


async def test_a_worker_that_obeys_a_newer_conductor_ends_the_tenure(watched: Watched) -> None:
    a = watched.record("a")
    await watched.registry.register(a)
    async with watched.answering(a, refusing(StaleEpochError("epoch 8 is known"))):
        async with watched.running() as task:
            await asyncio.wait({task}, timeout=5)
        with pytest.raises(ExceptionGroup) as caught:
            task.result()
    assert caught.group_contains(LeaseLostError, match="obeys another conductor: epoch 8 is known", depth=None)


async def test_records_and_heartbeats_reach_the_roster(watched: Watched) -> None:
    a = watched.record("a")
    await watched.registry.register(a)
    async with watched.answering(a, lambda message: message.respond(HelloReply(record=a))), watched.running():
        await eventually(lambda: watched.states() == {a.worker: "used"})
        beat = Heartbeat(worker=a.worker, instance=a.instance, role="stage", busy_s=1.5)
        forged = msgspec.structs.replace(beat, busy_s=9.0)
        await watched.transport.publish(subjects.heartbeat(watched.record("b").subject), forged)
        await watched.transport.publish(subjects.heartbeat(a.subject), beat)
        await eventually(lambda: watched.roster.heartbeat(a.instance) == beat)
        await watched.transport.publish(subjects.heartbeat(watched.record("b").subject), forged)
        await watched.transport.publish(subjects.heartbeat(a.subject), msgspec.structs.replace(beat, num_tokens=1))
        await eventually(lambda: watched.roster.heartbeat(a.instance) == msgspec.structs.replace(beat, num_tokens=1))


async def test_a_redis_that_refuses_makes_nobody_leave(watched: Watched, redis: RedisClient) -> None:
    a = watched.record("a", state="draining")
    watched.roster.join(a)
    watched.clock.pass_s(60.0)  # it is silent: without a record it would be gone
    await redis.acl_setuser("default", enabled=True, commands=["-srandmember"])
    async with watched.running() as task:
        try:
            await eventually(lambda: watched.states() == {a.worker: "suspended"} and watched.watch._is_registry_away)
            assert [member.record for member in watched.roster.members] == [a]
        finally:
            await redis.acl_setuser("default", enabled=True, commands=["+srandmember"])
        await eventually(lambda: watched.roster.members == ())
        assert not task.done()


async def test_who_listens_no_more_when_its_edge_ends_is_suspended_at_once_and_serves_again_when_heard_of(
    watched: Watched,
) -> None:
    a = watched.record("a")

    async def reply(message: Received[Hello]) -> None:
        await message.respond(HelloReply(record=a))

    async with watched.answering(a, reply):
        await watched.watch.shake_hands(a)
    async with watched.running():

        async def is_suspended() -> bool:
            await watched.miss(a)  # again and again, since the watch may not have subscribed yet
            return watched.states() == {a.worker: "suspended"}

        await eventually(is_suspended)  # the clock stands: not by silence
        assert watched.roster.find(a.subject) == a, "it may come back, with its sessions"


async def test_who_is_there_when_its_edge_ends_or_only_does_not_answer_in_time_is_used(watched: Watched) -> None:
    well, slow = watched.record("well"), watched.record("slow")
    heard: list[str] = []

    async def respond(message: Received[Hello]) -> None:
        heard.append("well")
        await message.respond(HelloReply(record=well))

    async def say_nothing(_: Received[Hello]) -> None:
        heard.append("slow")

    async with watched.answering(well, respond), watched.answering(slow, say_nothing), watched.running():
        for worker in (well, slow):
            watched.roster.look([worker])
            watched.roster.join(worker)

        async def both_were_asked_twice() -> bool:
            await watched.miss(well)
            await watched.miss(slow)
            return min(heard.count("well"), heard.count("slow")) >= 2

        await eventually(both_were_asked_twice)
        assert watched.states() == {well.worker: "used", slow.worker: "used"}


async def test_a_vision_worker_that_keeps_requests_waiting_is_asked_whether_it_is_there(watched: Watched) -> None:
    hung, well = watched.record("hung", role="vision"), watched.record("well", role="vision")
    vision, heard = watched.workers.vision, []

    async def respond(message: Received[Hello]) -> None:
        heard.append(message.body.epoch)
        await message.respond(HelloReply(record=well))

    async def say_nothing(_: Received[Hello]) -> None:
        pass

    async with watched.answering(well, respond), watched.answering(hung, say_nothing), watched.running():
        for worker in (well, hung):
            watched.roster.look([worker])
            watched.roster.join(worker)
        of_hung, of_well = sorted(vision.workers, key=lambda each: each.record.worker)
        with vision.lend(of_hung), vision.lend(of_well):
            assert not heard
            watched.clock.pass_s(1.0)
            await eventually(lambda: of_hung.is_mute and bool(heard))
            assert not of_well.is_mute
            assert of_hung.is_usable, "heartbeats and deadlines say whether it is dead"
            watched.workers.note_alive(hung, Heartbeat(worker="hung", instance=hung.instance, role="vision"))
            assert not of_hung.is_mute


async def test_a_vision_worker_on_whose_subject_nobody_listens_is_dead_at_once(watched: Watched) -> None:
    dead = watched.record("dead", role="vision")
    async with watched.running():
        watched.roster.look([dead])
        watched.roster.join(dead)
        [worker] = watched.workers.vision.workers
        with watched.workers.vision.lend(worker):
            watched.clock.pass_s(1.0)
            await eventually(lambda: not worker.is_alive)
