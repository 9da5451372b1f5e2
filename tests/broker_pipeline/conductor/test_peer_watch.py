"""Conductors that watch each other over a real nats-server: who is gone, who only seems to be."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from broker_pipeline import subjects
from broker_pipeline.conductor.peer_watch import PeerWatch
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.wire.transport import Transport
from tests.kit.waiting import eventually


def conductor(namespace: str, name: str, *, answers_hellos: bool = True) -> WorkerRecord:
    root = subjects.worker_root(namespace, "main", "conductor", name, name)
    return WorkerRecord(
        worker=name, instance=name, role="conductor", pipeline="main", subject=root, answers_hellos=answers_hellos
    )


@asynccontextmanager
async def watching(transport: Transport, record: WorkerRecord) -> AsyncIterator[PeerWatch]:
    watch = PeerWatch(transport=transport, record=record)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.wait({task})


class Answering:
    """Another conductor, which answers hellos while it `is_well`, and counts them."""

    def __init__(self) -> None:
        self.is_well = True
        self.num_asked = 0

    async def run(self, transport: Transport, record: WorkerRecord) -> None:
        async with transport.subscribe(subjects.control(record.subject), Hello) as hellos:
            async for message in hellos:
                self.num_asked += 1
                if self.is_well:
                    await message.respond(HelloReply(record=record))


class Pair:
    """A conductor that watches, and another one."""

    def __init__(self, watch: PeerWatch, other: Answering, task: asyncio.Task[None]) -> None:
        self.watch, self.other, self.task = watch, other, task

    async def known_well(self) -> None:
        """Wait until the other has been asked often enough that its pauses are known."""
        asked = self.other.num_asked
        await eventually(lambda: self.other.num_asked >= asked + 12)
        assert self.watch.gone == frozenset()


@asynccontextmanager
async def pair(transport: Transport, namespace: str) -> AsyncIterator[Pair]:
    a, b = (conductor(namespace, name) for name in "ab")
    other = Answering()
    task = asyncio.create_task(other.run(transport, b))
    async with AsyncExitStack() as stack:
        watch = await stack.enter_async_context(watching(transport, a))
        await eventually(lambda: bool(other.num_asked) or _meet(watch, a, b))
        try:
            yield Pair(watch, other, task)
        finally:
            task.cancel()
            await asyncio.wait({task})


def _meet(watch: PeerWatch, *records: WorkerRecord) -> bool:
    watch.meet(records)
    return False


async def test_one_that_listens_no_more_is_gone_at_once(transport: Transport, namespace: str) -> None:
    async with pair(transport, namespace) as both:
        await both.known_well()
        both.task.cancel()
        async with asyncio.timeout(10):
            while not both.watch.gone:
                await both.watch.found_gone(10.0)
        assert both.watch.gone == {"b"}


async def test_one_that_answers_no_more_is_gone_until_it_does(transport: Transport, namespace: str) -> None:
    async with pair(transport, namespace) as both:
        await both.known_well()
        both.other.is_well = False
        await eventually(lambda: both.watch.gone == {"b"})
        both.other.is_well = True
        await eventually(lambda: both.watch.gone == frozenset())


async def test_after_a_doubt_only_who_has_answered_again_can_be_silent(transport: Transport, namespace: str) -> None:
    async with pair(transport, namespace) as both:
        await both.known_well()
        both.other.is_well = False
        await eventually(lambda: both.watch.gone == {"b"})
        both.watch.doubt_all()
        asked = both.other.num_asked
        await eventually(lambda: both.other.num_asked > asked + 20)  # three seconds
        assert both.watch.gone == frozenset()


@pytest.mark.parametrize("sends", [signal.SIGSTOP, signal.SIGKILL])
async def test_nobody_is_gone_while_nats_is(own_nats: EmbeddedNats, namespace: str, sends: signal.Signals) -> None:
    async with Transport.open(own_nats.url, name="test") as transport, pair(transport, namespace) as both:
        transport.add_reconnect_listener(both.watch.on_reconnect)
        await both.known_well()
        own_nats.kill(sends)
        assert not await is_found_gone(both.watch, 3.0)
        await (own_nats.restart() if sends is signal.SIGKILL else asyncio.to_thread(own_nats.kill, signal.SIGCONT))
        await both.known_well()


async def is_found_gone(watch: PeerWatch, within_s: float) -> bool:
    """Watch for as long as NATS is away: that nobody is missed meanwhile has no event to wait for."""
    await watch.found_gone(within_s)
    return bool(watch.gone)


async def test_who_says_that_it_answers_no_hellos_is_never_missed(transport: Transport, namespace: str) -> None:
    a, b, c = (conductor(namespace, name, answers_hellos=name != "b") for name in "abc")
    async with watching(transport, a) as watch:
        watch.meet([a, b, c])  # neither of the others listens
        await eventually(lambda: bool(watch.gone))
        assert watch.gone == {"c"}
