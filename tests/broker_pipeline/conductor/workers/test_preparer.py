"""Who prepares a session, and what happens when that worker is busy, fails, vanishes or answers nonsense: over NATS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import numpy as np
import pytest

from broker_pipeline import subjects
from broker_pipeline.conductor.workers.preparer import PreparePauses, Preparer
from broker_pipeline.errors import (
    ComputeError,
    MalformedEnvelopeError,
    NotAnImageError,
    StageError,
    TransportError,
    WorkerBusyError,
    WorkerLostError,
)
from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.jobs import ChatMessage, TextPart
from broker_pipeline.messages.vision import PrepareCancel, PreparedSession, PrepareRequest
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.scheduling.session_state import PreparedPrompt
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.wire.transport import Received, Transport
from broker_pipeline.wire.wire_tensor import WireTensor
from tests.kit.acting.stage_side import EPOCH, FINGERPRINT, StageSide, record
from tests.kit.waiting import eventually

VOCABULARY = 300
PAUSES = PreparePauses(first_s=0.001, longest_s=0.002)

Message = Received[PrepareRequest]
Reply = Callable[[Message], Awaitable[None]]


class Eye:
    """A vision worker that answers as the test says; `hold` keeps what it is asked."""

    def __init__(self, worker: WorkerRecord, reply: Reply) -> None:
        self.record = worker
        self.reply = reply
        self.asked: list[Message] = []

    async def serve(self, messages: AsyncIterator[Message]) -> None:
        async for message in messages:
            self.asked.append(message)
            await self.reply(message)


async def hold(_: Message) -> None:
    """Answer nothing."""


async def be_busy(message: Message) -> None:
    message.refuse(WorkerBusyError("enough to do"))


async def prepare(message: Message, **changes: object) -> None:
    """Answer with a prompt of four tokens."""
    facts = {"session": message.body.session, "attempt": 1, "worker": "eye", "num_tokens": 4} | changes
    await message.respond(PreparedSession(**facts), tensors())  # type: ignore[arg-type]


def tensors(ids: list[int] | None = None, positions: list[int] | None = None) -> dict[str, WireTensor]:
    token_ids = np.array([1, 2, 3, 4] if ids is None else ids, np.int32)
    row = np.array([0, 1, 2, 3] if positions is None else positions, np.int32)
    return {
        "token_ids": WireTensor.from_numpy(token_ids),
        "positions": WireTensor.from_numpy(np.stack([row, row, row])),
    }


def spans(*found: tuple[int, int]) -> tuple[VisualSpan, ...]:
    return tuple(VisualSpan(offset=offset, count=count, row=0) for offset, count in found)


async def soon(asking: asyncio.Task[PreparedPrompt]) -> PreparedPrompt:
    """Wait for a prompt, but not for the time-out of a request."""
    async with asyncio.timeout(2):
        return await asking


class Preparing(StageSide):
    def __init__(self, transport: Transport, namespace: str, stack: AsyncExitStack) -> None:
        super().__init__()
        self.transport, self.namespace, self._stack = transport, namespace, stack
        self.tried: dict[str, set[str]] = {}
        self.stage = record(f"stage-{namespace}")
        self.workers.join(self.stage)
        (self.route,) = self.scheduler.routes.open_routes
        self.preparer = Preparer(transport, self.workers, VOCABULARY, PAUSES)

    async def eye(self, name: str, reply: Reply, **facts: object) -> Eye:
        eye = Eye(record(f"{name}-{self.namespace}", role="vision", **facts), reply)
        messages = self.transport.subscribe(subjects.work(eye.record.subject), PrepareRequest)
        task = asyncio.create_task(eye.serve(await self._stack.enter_async_context(messages)))
        self._stack.callback(task.cancel)
        self.workers.join(eye.record)
        return eye

    def ask(self, session: str = "job", *, is_alone: bool = False) -> asyncio.Task[PreparedPrompt]:
        request = PrepareRequest(
            pipeline="main",
            fingerprint=FINGERPRINT,
            epoch=EPOCH,
            session=session,
            attempt=1,
            messages=(ChatMessage(role="user", content=(TextPart(text="Describe."),)),),
            max_prompt_tokens=100,
            budget_s=5.0,
        )
        tried = self.tried.setdefault(session, set())
        return asyncio.create_task(self.preparer.prepare(request, self.route, tried=tried, is_alone=is_alone))

    async def prompt(self) -> PreparedPrompt:
        return await soon(self.ask())


@pytest.fixture
async def it(transport: Transport, namespace: str) -> AsyncIterator[Preparing]:
    async with AsyncExitStack() as stack:
        yield Preparing(transport, namespace, stack)


async def test_a_prompt_is_what_the_vision_worker_says(it: Preparing) -> None:
    span = VisualSpan(offset=1, count=2, row=0)
    await it.eye("eye", lambda message: prepare(message, position_delta=-2, visual=(span,)))
    prompt = await it.prompt()
    assert prompt.token_ids.tolist() == [1, 2, 3, 4]
    assert (prompt.position_delta, prompt.visual, prompt.num_visual_tokens) == (-2, (span,), 2)


# --- who is asked ---------------------------------------------------------------------------------------------------


async def test_the_least_loaded_worker_is_asked(it: Preparing) -> None:
    eyes = [await it.eye("one", hold), await it.eye("two", hold)]
    asking = [it.ask(f"job-{number}") for number in range(6)]
    await eventually(lambda: sum(len(eye.asked) for eye in eyes) == 6)
    assert [len(eye.asked) for eye in eyes] == [3, 3]
    for message in eyes[1].asked:
        await prepare(message)
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    await eventually(lambda: sum(task.done() for task in asking) == 3)
    more = [it.ask(f"more-{number}") for number in range(3)]
    await eventually(lambda: len(eyes[1].asked) == 6)
    assert len(eyes[0].asked) == 3, "it still has three to do"
    for task in (*asking, *more):
        task.cancel()


async def test_another_worker_is_asked_the_next_time(it: Preparing) -> None:
    failure = ComputeError("tower out of memory").to_failure()
    eyes = [await it.eye(name, lambda message: prepare(message, failure=failure)) for name in ("one", "two")]
    for _ in range(2):
        with pytest.raises(ComputeError, match="tower out of memory"):
            await it.prompt()
    assert [len(eye.asked) for eye in eyes] == [1, 1]


async def test_a_request_that_the_broker_may_have_lost_is_made_again(it: Preparing) -> None:
    eye = await it.eye("eye", hold)
    asking = it.ask()
    await eventually(lambda: len(eye.asked) == 1)
    eye.reply = prepare
    it.workers.vision.lose_requests(0.0)
    assert (await soon(asking)).num_tokens == 4
    assert len(eye.asked) == 2


async def test_after_an_outage_only_workers_that_were_heard_since_are_asked(it: Preparing) -> None:
    """The broker may still have the last connection of the others, where requests end."""
    eyes = [await it.eye(name, prepare) for name in ("a", "b")]
    vision = it.workers.vision
    vision.lose_requests(vision.clock() + 1)
    asking = it.ask()
    await asyncio.sleep(0)
    assert not asking.done()
    vision.note_there(vision.workers[1].record.instance, is_there=True)
    assert (await soon(asking)).num_tokens == 4
    assert [len(eye.asked) for eye in eyes] == [0, 1]


async def test_a_request_waits_for_the_first_worker(it: Preparing) -> None:
    asking = it.ask()
    await asyncio.sleep(0)
    await it.eye("eye", prepare)
    assert (await soon(asking)).num_tokens == 4


# --- late ones -------------------------------------------------------------------------------------------------------


async def pair_of_eyes(it: Preparing, *replies: Reply) -> list[Eye]:
    """Return two vision workers, the first of which is asked first, in a pipeline where anything is late soon."""
    it.workers.vision.hedging.late_after_s = 0.05
    return [await it.eye(name, reply) for name, reply in zip(("a", "b"), replies, strict=True)]


async def cancels_of(it: Preparing, eye: Eye, stack: AsyncExitStack) -> list[str]:
    """Return the sessions that a worker is told to let be, as they come."""
    cancelled: list[str] = []
    messages = await stack.enter_async_context(
        it.transport.subscribe(subjects.cancel_work(eye.record.subject), PrepareCancel)
    )

    async def listen() -> None:
        async for message in messages:
            cancelled.append(message.body.session)  # noqa: PERF401 - as they come

    stack.callback(asyncio.create_task(listen()).cancel)
    return cancelled


async def test_a_second_worker_is_asked_what_the_first_is_late_with_and_nobody_is_to_blame(it: Preparing) -> None:
    late, quick = await pair_of_eyes(it, hold, prepare)
    assert (await it.prompt()).num_tokens == 4
    assert [len(eye.asked) for eye in (late, quick)] == [1, 1]
    vision = it.workers.vision
    assert (vision.hedging.num_hedges, vision.hedging.num_won) == (1, 1)
    assert {vision.state(worker) for worker in vision.workers} == {"ready"}
    assert not vision.health.spared


async def test_of_two_that_are_asked_the_one_that_is_slower_is_told_to_let_it_be(it: Preparing) -> None:
    late, quick = await pair_of_eyes(it, hold, hold)
    async with AsyncExitStack() as stack:
        cancelled = await cancels_of(it, quick, stack)
        asking = it.ask()
        await eventually(lambda: len(quick.asked) == 1)
        await prepare(late.asked[0])
        await soon(asking)
        await eventually(lambda: cancelled == ["job"])
    assert it.workers.vision.hedging.num_won == 0


async def test_the_first_request_that_a_worker_is_late_with_stays_with_it_and_others_are_taken_back(
    it: Preparing,
) -> None:
    late, _ = await pair_of_eyes(it, hold, prepare)
    async with AsyncExitStack() as stack:
        cancelled = await cancels_of(it, late, stack)
        it.workers.vision.hedging.late_after_s = 0.2
        await asyncio.gather(*(soon(it.ask(f"job-{number}")) for number in range(6)))
        num_late = len(late.asked)
        assert num_late > 1
        await eventually(lambda: len(cancelled) == num_late - 1)
    assert set(cancelled) < {message.body.session for message in late.asked}


async def test_a_failure_of_the_first_or_nonsense_counts_only_where_the_second_has_no_prompt(it: Preparing) -> None:
    first, second = await pair_of_eyes(it, hold, hold)
    asking = it.ask()
    await eventually(lambda: len(second.asked) == 1)
    await first.asked[0].respond(PreparedSession(session="job", attempt=1, worker="a", num_tokens=4))
    await asyncio.sleep(0)
    await prepare(second.asked[0])
    assert (await soon(asking)).num_tokens == 4
    assert it.workers.vision.hedging.num_won == 1
    asking = it.ask("other")
    await eventually(lambda: len(second.asked) + len(first.asked) == 4)
    failure = ComputeError("out of memory").to_failure()
    for eye in (first, second):
        await prepare(eye.asked[1], failure=failure)
    with pytest.raises(ComputeError):
        await soon(asking)


async def test_a_wrong_input_needs_no_second_opinion(it: Preparing) -> None:
    first, second = await pair_of_eyes(it, hold, hold)
    asking = it.ask()
    await eventually(lambda: len(second.asked) == 1)
    await prepare(first.asked[0], failure=NotAnImageError("no image").to_failure())
    with pytest.raises(NotAnImageError):
        await soon(asking)


async def test_when_the_first_dies_the_second_answers_and_no_attempt_ends(it: Preparing) -> None:
    first, second = await pair_of_eyes(it, hold, hold)
    asking = it.ask()
    await eventually(lambda: len(second.asked) == 1)
    it.workers.leave(first.record, "it was killed")
    await prepare(second.asked[0])
    assert (await soon(asking)).num_tokens == 4


async def test_a_suspect_is_never_asked_of_two(it: Preparing) -> None:
    first, second = await pair_of_eyes(it, hold, prepare)
    asking = it.ask(is_alone=True)
    await eventually(lambda: len(first.asked) == 1)
    await asyncio.sleep(0.2)  # four times what makes others late
    assert not second.asked
    await prepare(first.asked[0])
    await soon(asking)


async def test_hedges_end_where_the_allowance_does_but_for_a_worker_that_answers_nothing_at_all(it: Preparing) -> None:
    late, _ = await pair_of_eyes(it, hold, prepare)
    vision = it.workers.vision
    while vision.hedging.spend():
        pass
    asking = it.ask()
    await eventually(lambda: len(late.asked) == 1)
    await asyncio.sleep(0.2)  # four times what makes it late
    assert not asking.done()
    vision.note_there(late.record.instance, is_there=False)
    assert (await soon(asking)).num_tokens == 4


# --- what ends an attempt --------------------------------------------------------------------------------------------


async def test_a_worker_that_vanishes_ends_the_attempt(it: Preparing) -> None:
    """That its request is made again somewhere else is the job's next attempt: it may be why the worker vanished."""
    eye = await it.eye("eye", hold)
    asking = it.ask()
    await eventually(lambda: len(eye.asked) == 1)
    it.workers.leave(eye.record, "it was killed")
    with pytest.raises(WorkerLostError, match=f"{eye.record.worker} died"):
        await soon(asking)


async def test_a_worker_that_falls_silent_ends_the_attempt(it: Preparing) -> None:
    eye = await it.eye("eye", hold)
    asking = it.ask()
    await eventually(lambda: len(eye.asked) == 1)
    it.workers.note_silent(eye.record, StageError("no sign of life"))
    with pytest.raises(WorkerLostError, match="fell silent"):
        await soon(asking)
    assert it.tried["job"] == set(), "it may be heard again, and not have died of the session"


async def test_a_busy_worker_costs_no_try(it: Preparing) -> None:
    eye = await it.eye("eye", be_busy)
    asking = it.ask()
    await eventually(lambda: len(eye.asked) > 3)
    eye.reply = prepare
    assert (await soon(asking)).num_tokens == 4


async def test_a_worker_that_cannot_be_reached_yet_costs_no_try(it: Preparing) -> None:
    unheard = record(f"unheard-{it.namespace}", role="vision")
    it.workers.join(unheard)
    asking = it.ask()
    await asyncio.sleep(0.05)  # many times what lies between two tries
    assert not asking.done()
    await it.eye("eye", prepare)
    assert (await soon(asking)).num_tokens == 4


async def test_a_wrong_input_is_tried_once(it: Preparing) -> None:
    failure = NotAnImageError("no image", field="messages[0].content[0]").to_failure()
    eye = await it.eye("eye", lambda message: prepare(message, failure=failure))
    with pytest.raises(NotAnImageError) as caught:
        await it.prompt()
    assert caught.value.field == "messages[0].content[0]"
    assert len(eye.asked) == 1


# --- on its own ------------------------------------------------------------------------------------------------------


async def test_a_suspect_waits_until_a_worker_has_nothing_else_and_keeps_it_to_itself(it: Preparing) -> None:
    eye = await it.eye("eye", hold)
    first = it.ask("first")
    await eventually(lambda: len(eye.asked) == 1)
    suspect = it.ask("suspect", is_alone=True)
    await asyncio.sleep(0)
    later = it.ask("later")
    await prepare(eye.asked[0])
    await soon(first)
    await eventually(lambda: len(eye.asked) == 2)
    assert eye.asked[1].body.session == "suspect"
    assert not later.done()
    await prepare(eye.asked[1])
    await soon(suspect)
    await eventually(lambda: len(eye.asked) == 3)
    await prepare(eye.asked[2])
    await soon(later)


async def test_others_go_to_another_worker_meanwhile(it: Preparing) -> None:
    eyes = {name: await it.eye(name, hold) for name in ("one", "two")}
    suspect = it.ask("suspect", is_alone=True)
    await eventually(lambda: len(eyes["one"].asked) == 1)
    others = [it.ask(f"job-{number}") for number in range(3)]
    await eventually(lambda: len(eyes["two"].asked) == 3)
    assert len(eyes["one"].asked) == 1
    for task in (suspect, *others):
        task.cancel()


async def test_a_suspect_that_is_cancelled_while_it_waits_lets_others_in(it: Preparing) -> None:
    eye = await it.eye("eye", hold)
    first = it.ask("first")
    await eventually(lambda: len(eye.asked) == 1)
    suspect = it.ask("suspect", is_alone=True)
    await asyncio.sleep(0)
    later = it.ask("later")
    await asyncio.sleep(0)
    suspect.cancel()
    await eventually(lambda: len(eye.asked) == 2)
    for message in eye.asked:
        await prepare(message)
    await asyncio.gather(first, later)


async def test_a_suspect_takes_another_worker_when_the_one_it_waits_for_dies(it: Preparing) -> None:
    eye = await it.eye("eye", hold)
    first = it.ask("first")
    await eventually(lambda: len(eye.asked) == 1)
    suspect = it.ask("suspect", is_alone=True)
    await asyncio.sleep(0)
    it.workers.leave(eye.record, "it was killed")
    with pytest.raises(WorkerLostError):
        await soon(first)
    await it.eye("other", prepare)
    assert (await soon(suspect)).num_tokens == 4


async def test_sessions_in_a_stage_that_died_with_its_suspect_are_not_to_blame(
    it: Preparing, redis: RedisClient
) -> None:
    """A stage and a vision worker may share a process: what killed that is known then."""
    process = {"host": "h", "pid": 77}
    stage = record(f"shared-{it.namespace}", **process)
    it.workers.leave(it.stage, "it is not wanted here")
    it.workers.join(stage)
    committer = it.committer(it.transport, redis, it.namespace)
    (it.route,) = it.scheduler.routes.open_routes
    eye = await it.eye("eye", hold, **process)

    async def die(name: str, *, is_alone: bool) -> bool:
        generation = it.start(name, committer)
        it.plan()
        asking = it.ask(f"killer-{name}", is_alone=is_alone)
        await eventually(lambda: bool(eye.asked))
        eye.asked.clear()
        it.workers.note_silent(eye.record, StageError("silent"))
        await asyncio.gather(asking, return_exceptions=True)  # heartbeats of the two end up to a second apart
        it.workers.note_silent(stage, StageError("silent"))
        lost = await generation.ended()
        it.workers.join(stage)
        it.workers.note_alive(eye.record, Heartbeat(worker="eye", instance=eye.record.instance, role="vision"))
        assert lost is not None
        return lost.is_blamed

    assert await die("first", is_alone=False)
    assert not await die("second", is_alone=True)
    assert await die("third", is_alone=False)


# --- the route ------------------------------------------------------------------------------------------------------


async def test_a_session_whose_route_is_lost_is_prepared_no_further(it: Preparing) -> None:
    eye = await it.eye("eye", hold)
    asking = it.ask()
    await eventually(lambda: len(eye.asked) == 1)
    it.workers.suspend(it.stage.instance, TransportError("silent"))
    with pytest.raises(StageError, match="was lost while the session was prepared"):
        await soon(asking)
    assert it.tried["job"] == set(), "which says nothing of whoever prepared it"


async def test_nobody_waits_for_a_vision_worker_when_the_route_is_lost(it: Preparing) -> None:
    asking = it.ask()
    await asyncio.sleep(0)
    it.workers.leave(it.stage, "it was killed")
    with pytest.raises(StageError, match="was lost while the session was prepared"):
        await soon(asking)


# --- nonsense -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sent", "words"),
    [
        ({}, {}, "sent no prompt"),
        ({"num_tokens": 0}, tensors(), "sent no prompt"),
        ({}, tensors(ids=[1, 2, 3]), "for 4 tokens"),
        ({}, tensors(ids=[1, 2, 3, VOCABULARY]), "out of range"),
        ({}, tensors(ids=[1, -2, 3, 4]), "out of range"),
        ({}, tensors(positions=[0, 1, -2, 3]), "out of range"),
        ({"visual": spans((3, 2))}, tensors(), "leave the prompt"),
        ({"visual": spans((0, 2), (1, 1))}, tensors(), "overlap"),
        ({"visual": spans((0, 2)), "visual_content": ("a+0", "b+0")}, tensors(), "1 visual spans and the content of 2"),
        ({"visual_content": ("a+0",)}, tensors(), "0 visual spans and the content of 1"),
    ],
)
async def test_a_prompt_that_contradicts_itself_is_refused(
    it: Preparing, changes: dict[str, object], sent: dict[str, WireTensor], words: str
) -> None:
    async def reply(message: Message) -> None:
        facts = {"session": "job", "attempt": 1, "worker": "eye", "num_tokens": 4} | changes
        await message.respond(PreparedSession(**facts), sent)  # type: ignore[arg-type]

    await it.eye("eye", reply)
    with pytest.raises(MalformedEnvelopeError, match=words):
        await it.prompt()
