"""Which vision worker is asked next, on a clock of the test's own."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.conductor.workers.vision_pool import VisionPool, done_after_s
from broker_pipeline.errors import ComputeError
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.process.broadcast_event import BroadcastEvent
from tests.kit.acting.stage_side import record
from tests.kit.fake_clock import FakeClock


def heartbeat(of: WorkerRecord, busy_s: float) -> Heartbeat:
    return Heartbeat(worker=of.worker, instance=of.instance, role=of.role, busy_s=busy_s)


async def never() -> None:
    raise AssertionError("somebody is free")


BEAT_S = 0.5


class Pool:
    """Workers whose towers compute for one request at a time, each for its own number of seconds.

    From question to answer it takes `way_s` longer, in which a worker does any number of requests.
    """

    def __init__(self, way_s: dict[str, float] | None = None, **seconds: float) -> None:
        self.clock = FakeClock()
        self.way_s = way_s or {}
        self.beats_at = BEAT_S
        self.computed_s = dict.fromkeys(seconds, 0.0)
        self.pool = VisionPool(BroadcastEvent(), self.clock)
        self.seconds = seconds
        self.free_at = dict.fromkeys(seconds, 0.0)
        self.num_asked = dict.fromkeys(seconds, 0)
        self._in_hand: list[tuple[float, AsyncExitStack]] = []
        for name in seconds:
            self.pool.update(record(name, role="vision", device_id=f"gpu-{name}"))

    async def ask(self, near: str = "") -> str:
        stack = AsyncExitStack()
        worker = await stack.enter_async_context(self.pool.borrow(never, near=f"gpu-{near}"))
        name = worker.record.worker
        self.num_asked[name] += 1
        self.free_at[name] = max(self.clock.now, self.free_at[name]) + self.seconds[name]
        self.computed_s[name] += self.seconds[name]
        self._in_hand.append((self.free_at[name] + self.way_s.get(name, 0.0), stack))
        return name

    async def answer(self) -> None:
        """Let time pass until the next request is done."""
        self._in_hand.sort(key=lambda each: each[0])
        while self.beats_at <= self._in_hand[0][0]:
            self.clock.now = self.beats_at
            self.beat()
            self.beats_at += BEAT_S
        self.clock.now, stack = self._in_hand.pop(0)
        await stack.aclose()

    def beat(self) -> None:
        for worker in self.pool.workers:
            name = worker.record.worker
            ahead_s = max(0.0, self.free_at[name] - self.clock.now)
            self.pool.hear(worker.record, heartbeat(worker.record, self.computed_s[name] - ahead_s))

    def rates(self) -> dict[str, float]:
        return {name: num / sum(self.num_asked.values()) for name, num in self.num_asked.items()}

    async def keep_asking(self, num_in_hand: int, num_requests: int) -> None:
        for _ in range(num_in_hand):
            await self.ask()
        for _ in range(num_requests):
            await self.answer()
            await self.ask()


async def test_equal_workers_get_equally_much() -> None:
    pool = Pool(one=0.01, two=0.01, three=0.01)
    await pool.keep_asking(12, 300)
    assert max(pool.num_asked.values()) - min(pool.num_asked.values()) <= 12


async def test_a_worker_whose_device_is_busy_with_other_things_gets_as_much_less_as_it_is_slower() -> None:
    pool = Pool(busy=0.06, free=0.01, spare=0.02)
    await pool.keep_asking(24, 2000)
    assert pool.rates() == pytest.approx({"busy": 0.1, "free": 0.6, "spare": 0.3}, abs=0.05)


async def test_a_worker_that_has_become_faster_is_found_out() -> None:
    pool = Pool(one=0.01, two=0.5)
    await pool.keep_asking(16, 1000)
    pool.seconds["two"], before = 0.01, dict(pool.num_asked)
    await pool.keep_asking(0, 4000)
    assert pool.num_asked["two"] - before["two"] > 1000


async def test_requests_that_fail_at_once_make_nobody_faster() -> None:
    pool = Pool(broken=0.01, whole=0.01)
    await pool.keep_asking(8, 100)
    pool.beat()
    before = {worker.record.worker: worker.tower_s.value for worker in pool.pool.workers}
    for _ in range(10):
        with pytest.raises(ComputeError):
            async with pool.pool.borrow(never):
                raise ComputeError("tower out of memory")
    pool.beat()
    assert {worker.record.worker: worker.tower_s.value for worker in pool.pool.workers} == before


async def test_a_worker_that_answers_a_little_sooner_gets_a_little_more_and_not_nearly_all() -> None:
    """By the time from question to answer, the one that is asked most would seem the fastest of those that wait."""
    far = dict.fromkeys(("far", "farther", "away"), 0.1)
    pool = Pool({"near": 0.09, **far}, near=0.001, far=0.001, farther=0.001, away=0.001)
    await pool.keep_asking(32, 3000)
    assert pool.rates() == pytest.approx({"near": 0.27, "far": 0.24, "farther": 0.24, "away": 0.24}, abs=0.03)


async def test_rows_stay_on_their_device_while_others_are_no_less_busy() -> None:
    pool = Pool(one=0.01, two=0.01)
    near = itertools.cycle(("one", "two"))
    for _ in range(16):
        await pool.ask(next(near))
    for _ in range(500):
        await pool.answer()
        assert await pool.ask(name := next(near)) == name


async def test_what_one_device_cannot_do_alone_goes_to_others_as_well() -> None:
    pool = Pool(one=0.01, two=0.01)
    for _ in range(16):
        await pool.ask("one")
    for _ in range(500):
        await pool.answer()
        await pool.ask("one")
    assert pool.rates() == pytest.approx({"one": 0.5, "two": 0.5}, abs=0.1), "neither is idle"


async def test_requests_go_where_stages_leave_room() -> None:
    pool = Pool(busy=0.01, free=0.01, spare=0.01)
    for name, share in {"busy": 0.8, "free": 0.2, "spare": 0.2}.items():
        stage = record(f"stage-{name}", device_id=f"gpu-{name}")
        for second in range(5):
            pool.clock.now = float(second)
            pool.pool.hear(stage, heartbeat(stage, 7 + share * second))
    for _ in range(18):
        await pool.ask()
    assert pool.num_asked == {"busy": 2, "free": 8, "spare": 8}


async def test_a_stage_that_is_not_heard_of_takes_nothing() -> None:
    pool = Pool(one=0.01, two=0.01)
    stage = record("stage-one", device_id="gpu-one")
    for second in range(3):
        pool.clock.now = float(second)
        pool.pool.hear(stage, heartbeat(stage, float(second)))
    pool.clock.now = 60.0
    for _ in range(10):
        await pool.ask()
    assert pool.num_asked == {"one": 5, "two": 5}


LOADS = st.lists(st.tuples(st.floats(1e-3, 1.0), st.floats(0.0, 1.0)), min_size=2, max_size=6)


@given(loads=LOADS, num_requests=st.integers(1, 60))
def test_nobody_has_more_in_hand_than_would_be_done_elsewhere_sooner(
    loads: list[tuple[float, float]], num_requests: int
) -> None:
    in_hand = [0] * len(loads)

    def done_s(index: int, num: int) -> float:
        return done_after_s(num, *loads[index])

    for _ in range(num_requests):
        in_hand[min(range(len(loads)), key=lambda index: done_s(index, in_hand[index]))] += 1
    last_s = max(done_s(index, num - 1) for index, num in enumerate(in_hand) if num)
    assert all(done_s(index, num) >= last_s for index, num in enumerate(in_hand))


async def test_whoever_failed_on_a_worker_waits_for_another_that_one_suspect_has_to_itself() -> None:
    pool = Pool(sick=0.01, well=0.01).pool
    waited = 0
    async with AsyncExitStack() as stack:
        suspect = await stack.enter_async_context(pool.borrow(never, {"sick-1"}, is_alone=True))
        assert suspect.record.worker == "well"

        async def end_of_suspect() -> None:
            nonlocal waited
            waited += 1
            await stack.aclose()

        async with pool.borrow(end_of_suspect, {"sick-1"}) as worker:
            assert (worker.record.worker, waited) == ("well", 1)


async def test_a_worker_in_whose_place_others_answer_gets_less_until_it_answers_and_is_tried_again() -> None:
    pool = Pool(late=0.01, well=0.01)
    for _ in range(20):
        await pool.ask()
    for _ in range(20):
        await pool.answer()
    pool.beat()
    late = next(worker for worker in pool.pool.workers if worker.record.worker == "late")
    for _ in range(3):
        late.note_overtaken(due_at=60.0)
    before = dict(pool.num_asked)
    for _ in range(9):
        await pool.ask()
    assert pool.num_asked["late"] - before["late"] == 1, "eight times as slow"
    late.note_answer(pool.clock.now)
    for _ in range(9):
        await pool.ask()
    assert pool.num_asked["late"] - before["late"] == 9


def test_who_has_not_answered_in_time_what_others_have_is_left_out_once_its_heartbeat_still_holds_that() -> None:
    pool = Pool(late=0.01, well=0.01)
    late = next(worker for worker in pool.pool.workers if worker.record.worker == "late")

    def hear(num_sessions: int) -> str:
        beat = Heartbeat(worker="late", instance="late-1", role="vision", num_sessions=num_sessions)
        pool.pool.hear(late.record, beat)
        return pool.pool.state(late)

    late.note_overtaken(due_at=10.0)
    assert hear(1) == "ready"
    pool.clock.now = 11.0
    assert hear(0) == "ready", "it has answered meanwhile: nobody waited for that"
    late.note_overtaken(due_at=20.0)
    pool.clock.now = 21.0
    assert hear(1) == "suspended"
