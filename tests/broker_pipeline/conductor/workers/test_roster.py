"""Each rule of the roster, at a clock that the test moves; workers, scheduler and vision pool are the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Literal

import msgspec
import pytest

from broker_pipeline.conductor.workers.roster import Roster, RosterTimes
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import ContractError, NoResponderError, PipelineError, RequestTimeoutError, TransportError
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.scheduling.planned_batch import PlannedBatch
from broker_pipeline.scheduling.routes import PipelineIdentity
from tests.kit.acting.stage_side import FINGERPRINT, NUM_LAYERS, StageSide, answer, record

TIMES = RosterTimes()


class RosterSide(StageSide):
    """A roster that is looked at every `watch_s`, as its watch does."""

    def __init__(self, dtype: str = "float32", *, is_new: bool = False) -> None:
        super().__init__()
        self.workers = Workers(
            self.scheduler, self.generations, self.plan_due, self.clock, longest_silence_s=TIMES.longest_silence_s
        )
        identity = PipelineIdentity(pipeline="main", fingerprint=FINGERPRINT, dtype=dtype, num_layers=NUM_LAYERS)
        self.roster = Roster(self.workers, identity, TIMES, self.clock)
        self.is_connected = True
        if not is_new:
            self.roster.look([])
            self.pass_s(2.1)  # by now all who are there have been found

    def join(self, *records: WorkerRecord) -> None:
        """As when all of them answer their handshake."""
        for each in self.roster.look(records):
            self.roster.join(each)

    def pass_s(self, seconds: float, *alive: WorkerRecord) -> None:
        """Let time pass in which only these workers are heard of."""
        for _ in range(round(seconds / TIMES.watch_s)):
            self.clock.pass_s(TIMES.watch_s)
            self.hear(*alive)
            self.watch()

    def stand_still(self, seconds: float) -> None:
        """Let time pass in which this process does nothing."""
        self.clock.pass_s(seconds)
        self.watch()

    def watch(self) -> None:
        self.roster.watch(is_connected=self.is_connected)

    def hear(self, *workers: WorkerRecord) -> None:
        for worker in workers:
            self.roster.heard(
                Heartbeat(worker=worker.worker, instance=worker.instance, role=worker.role), worker.subject
            )

    def take(self, *microbatches: PlannedBatch) -> None:
        """Take in what stages answer to these."""
        for each in microbatches:
            self.workers.take(self.scheduler.complete(answer(each), self.clock()))

    def asked(self) -> list[str]:
        """Workers that are sent something on their own, with the next plan."""
        return [str(microbatch.route) for microbatch in self.plan() if not microbatch.segments]

    def names(self) -> list[str]:
        return [member.record.instance for member in self.roster.members]


@pytest.fixture
def side() -> RosterSide:
    return RosterSide()


A, B = record("a", 0, 3), record("b", 3, 6)


async def begun_waiting(side: RosterSide, is_enough: Callable[[], bool] = lambda: False) -> asyncio.Future[None]:
    """Return a wait for those who are expected, which there are."""
    waits = asyncio.ensure_future(side.workers.expected_are_there(is_enough))
    await asyncio.sleep(0)
    assert not waits.done()
    return waits


# --- who is there ---------------------------------------------------------------------------------------------------


def test_a_newcomer_is_shaken_hands_with_once_and_used_when_it_has_answered(side: RosterSide) -> None:
    assert side.roster.look([A]) == [A]
    assert side.roster.look([A]) == [], "its handshake is under way"
    assert side.states() == {}, "nothing is used before it has answered"
    side.roster.join(A)
    assert side.roster.look([A]) == []
    assert side.states() == {"a": "used"}


def test_a_worker_that_does_not_answer_gets_another_handshake(side: RosterSide) -> None:
    side.roster.look([A])
    side.roster.note_unanswered(A, RequestTimeoutError("no answer"))
    assert side.roster.look([A]) == [A]
    (refused,) = side.roster.refused
    assert refused.reason == "does not answer the handshake: no answer"
    side.roster.join(A)
    assert side.roster.refused == ()


async def test_a_worker_is_expected_during_its_first_handshake_only(side: RosterSide) -> None:
    side.roster.look([A, B])
    waits = asyncio.ensure_future(side.workers.expected_are_there())
    await asyncio.sleep(0)
    side.roster.join(B)
    await asyncio.sleep(0)
    assert not waits.done()
    side.roster.note_unanswered(A, RequestTimeoutError("no answer"))
    await waits
    assert side.roster.look([A, B]) == [A], "a mute worker is asked again, and nobody waits for that"
    await side.workers.expected_are_there()


@pytest.mark.parametrize("error", [NoResponderError("nobody listens"), TransportError("reconnecting")])
async def test_a_worker_that_is_out_of_reach_is_expected_for_a_while(side: RosterSide, error: PipelineError) -> None:
    """After an outage of NATS, others may be back before it is."""
    side.roster.look([A, B])
    for each in (A, B):
        side.roster.note_unanswered(each, error)
    waits = asyncio.ensure_future(side.workers.expected_are_there())
    for _ in range(3):
        await asyncio.sleep(0)
        assert not waits.done()
        assert side.roster.look([A, B]) == [A, B]
        side.roster.note_unanswered(A, error)
        side.roster.note_unanswered(B, error)
    side.join(A, B)
    async with asyncio.timeout(1.0):
        await waits
    assert side.states() == {"a": "used", "b": "used"}


async def test_one_that_stays_out_of_reach_is_expected_no_more(side: RosterSide) -> None:
    side.roster.look([A])
    side.roster.note_unanswered(A, NoResponderError("nobody listens"))
    side.pass_s(2.1)
    assert side.roster.look([A]) == [A]
    async with asyncio.timeout(1.0):
        await side.workers.expected_are_there()


async def test_whoever_the_registry_may_have_lost_is_expected_at_first() -> None:
    """A Redis that lost power has no record of a worker until that renews it: who failed elsewhere waits for it."""
    side = RosterSide(is_new=True)
    side.join(A, B)
    waits = await begun_waiting(side, lambda: side.workers.has_route_without(["b-1"]))
    side.join(A, B, record("c", 3, 6))
    async with asyncio.timeout(1.0):
        await waits
        side.pass_s(2.1, A, B)
        await side.workers.expected_are_there()


def test_a_worker_that_refuses_us_is_shown_until_it_joins(side: RosterSide) -> None:
    side.roster.look([A])
    side.roster.note_refusing(A, ContractError("this worker serves pipeline other"))
    for _ in range(2):
        assert side.roster.look([A]) == [A], "it gets another handshake"
        (refused,) = side.roster.refused
        assert refused.reason == "refuses this conductor: this worker serves pipeline other"
        side.roster.note_refusing(A, ContractError("this worker serves pipeline other"))
    side.roster.join(A)
    assert side.roster.refused == ()


def test_a_worker_that_refused_us_and_left_is_not_shown(side: RosterSide) -> None:
    side.roster.look([A])
    side.roster.note_refusing(A, ContractError("no"))
    side.roster.look([])
    assert side.roster.refused == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "0" * 64}, "its artifact is 000000000000"),
        ({"contract": 2}, "speaks version 2 of the contract"),
        ({"dtype": "bfloat16"}, "computes in bfloat16, the pipeline in float32"),
        ({"num_layers": 7}, "believes in 7 layers"),
    ],
)
def test_a_worker_that_does_not_fit_is_refused_with_its_reason(
    side: RosterSide, changes: dict[str, object], reason: str
) -> None:
    wrong = record("a", **changes)
    assert side.roster.look([wrong, B]) == [B]
    (refused,) = side.roster.refused
    assert refused.worker == "a"
    assert reason in refused.reason
    side.roster.look([B])
    assert side.roster.refused == (), "what is gone is refused no more"


def test_the_dtype_is_that_of_the_stage_that_was_started_first() -> None:
    side = RosterSide(dtype="")
    late = record("late", dtype="float32", started_at=2.0)
    first = record("first", dtype="bfloat16", started_at=1.0)
    eye = record("eye", role="vision", dtype="float32", started_at=0.5)
    assert side.roster.look([late, first, eye]) == [first], "a vision worker does not decide"
    assert {each.worker for each in side.roster.refused} == {"late", "eye"}


def test_the_dtype_in_use_stays_whoever_comes() -> None:
    side = RosterSide(dtype="")
    a = record("a", dtype="float32", started_at=2.0)
    side.join(a)
    assert side.roster.look([a, record("older", dtype="bfloat16", started_at=1.0)]) == []
    (refused,) = side.roster.refused
    assert refused.reason.startswith("computes in bfloat16, the pipeline in float32")


def test_a_stage_that_cannot_serve_decides_no_dtype() -> None:
    side = RosterSide(dtype="")
    alien = record("alien", fingerprint="0" * 64, dtype="bfloat16", started_at=1.0)
    assert side.roster.look([alien, A]) == [A]


def test_a_worker_that_drains_gets_no_new_sessions(side: RosterSide) -> None:
    side.join(A, B)
    assert len(side.scheduler.routes.open_routes) == 1
    side.roster.look([msgspec.structs.replace(A, state="draining"), B])
    assert side.scheduler.routes.open_routes == ()
    assert side.states() == {"a": "used", "b": "used"}, "it finishes the sessions that it has"


def test_a_worker_that_drains_when_it_is_met_gets_no_sessions(side: RosterSide) -> None:
    side.join(msgspec.structs.replace(A, state="draining"), B)
    assert side.scheduler.routes.open_routes == ()


def test_a_vision_worker_that_drains_gets_no_requests(side: RosterSide) -> None:
    eye = record("eye", role="vision")
    side.join(eye)
    assert side.workers.vision.num_usable == 1
    side.roster.look([msgspec.structs.replace(eye, state="draining")])
    assert side.workers.vision.num_usable == 0


# --- who is gone ----------------------------------------------------------------------------------------------------


def test_a_worker_that_is_started_again_replaces_its_predecessor(side: RosterSide) -> None:
    side.join(A, B)
    again = record("a", 0, 3, instance="a-2")
    assert side.roster.look([again, B]) == [again]
    assert side.names() == ["b-1"], "its name is another instance's"
    side.roster.join(again)
    assert side.names() == ["b-1", "a-2"]
    assert [worker.key for worker in side.scheduler.routes.usable] == ["b-1", "a-2"]


def test_a_predecessor_that_the_registry_still_shows_leaves_when_its_successor_joins(side: RosterSide) -> None:
    side.join(A)
    again = record("a", 0, 3, instance="a-2")
    side.join(A, again)
    assert side.names() == ["a-2"]


def test_a_silent_worker_without_a_record_may_come_back_for_a_long_time(side: RosterSide) -> None:
    side.join(A)
    side.pass_s(3.0)
    side.roster.look([])
    side.clock.pass_s(TIMES.forget_s - 1)
    side.roster.look([])
    assert side.names() == ["a-1"], "its sessions' KV is still accounted for"
    side.clock.pass_s(2)
    side.roster.look([])
    assert side.names() == []
    assert side.states() == {}


def test_a_worker_whose_record_was_away_for_a_moment_is_absent_from_the_next_absence_on(side: RosterSide) -> None:
    side.join(A)
    side.pass_s(3.0)
    side.roster.look([])
    side.clock.pass_s(TIMES.forget_s)
    side.roster.look([A])
    side.roster.look([])
    side.clock.pass_s(TIMES.forget_s)
    side.roster.look([])
    assert side.names() == ["a-1"]


def test_a_worker_that_drained_is_gone_with_its_record_once_it_is_silent(side: RosterSide) -> None:
    draining = msgspec.structs.replace(A, state="draining")
    side.join(draining)
    side.pass_s(1.0)
    side.roster.look([])
    assert side.names() == ["a-1"], "it was heard of just now"
    side.pass_s(2.0)
    side.roster.look([])
    assert side.names() == []


# --- who is alive ---------------------------------------------------------------------------------------------------


def test_a_stage_that_falls_silent_is_suspended(side: RosterSide) -> None:
    side.join(A, B)
    side.pass_s(2.4, B)
    assert side.states() == {"a": "used", "b": "used"}
    side.pass_s(0.2, B)
    assert side.states() == {"a": "suspended", "b": "used"}


def test_a_stage_with_a_spare_is_missed_as_soon_as_its_regular_signs_allow(side: RosterSide) -> None:
    spare = record("spare", 0, 3)
    side.join(A, B, spare)
    side.pass_s(3.0, A, B, spare)
    side.pass_s(0.7, B, spare)
    assert side.states()["a"] == "used"
    side.pass_s(0.2, B, spare)
    assert side.states()["a"] == "suspended"


def test_a_stage_without_a_spare_is_given_all_the_time(side: RosterSide) -> None:
    side.join(A, B)
    side.pass_s(3.0, A, B)
    side.pass_s(TIMES.heartbeat_timeout_s - 0.2, B)
    assert side.states()["a"] == "used"
    side.pass_s(0.3, B)
    assert side.states()["a"] == "suspended"


def test_where_nobody_is_heard_nobody_is_missed_early(side: RosterSide) -> None:
    """NATS may be cut off, and nobody has noticed yet."""
    spare = record("spare", 0, 3)
    side.join(A, B, spare)
    side.pass_s(3.0, A, B, spare)
    side.pass_s(TIMES.heartbeat_timeout_s - 0.2)
    assert set(side.states().values()) == {"used"}
    side.pass_s(0.3)
    assert set(side.states().values()) == {"suspended"}


def test_an_outage_of_the_broker_makes_nobody_more_patient(side: RosterSide) -> None:
    spare = record("spare", 0, 3)
    side.join(A, B, spare)
    side.pass_s(3.0, A, B, spare)
    side.is_connected = False
    side.pass_s(5.0)
    side.hear(A, B, spare)  # before the clock is looked at
    side.is_connected = True
    side.pass_s(0.2, A, B, spare)
    side.pass_s(1.0, B, spare)
    assert side.states()["a"] == "suspended"


def test_a_vision_worker_that_falls_silent_gets_no_requests_until_it_is_heard(side: RosterSide) -> None:
    eye = record("eye", role="vision")
    side.join(eye)
    side.pass_s(2.6)
    assert side.workers.vision.num_usable == 0
    side.hear(eye)
    assert side.workers.vision.num_usable == 1


def test_a_standstill_of_our_own_is_nobodys_silence(side: RosterSide) -> None:
    side.join(A)
    side.stand_still(60.0)
    assert side.states() == {"a": "used"}, "its heartbeats wait to be read"
    side.pass_s(2.4)
    assert side.states() == {"a": "used"}, "it has the full time again"
    side.pass_s(0.3)
    assert side.states() == {"a": "suspended"}


def test_a_look_that_is_a_little_late_is_no_standstill(side: RosterSide) -> None:
    side.join(A)
    for _ in range(5):
        side.stand_still(TIMES.watch_s + 0.9 * TIMES.standstill_s)
    assert side.states() == {"a": "suspended"}


def test_nobody_is_silent_while_the_broker_is_away(side: RosterSide) -> None:
    side.join(A)
    side.is_connected = False
    side.pass_s(60.0)
    assert side.states() == {"a": "used"}


def test_a_short_interruption_gives_everybody_the_full_time_again(side: RosterSide) -> None:
    side.join(A)
    side.pass_s(2.0)
    side.is_connected = False
    side.pass_s(0.2)
    side.is_connected = True
    side.pass_s(2.4)
    assert side.states() == {"a": "used"}
    side.pass_s(0.3)
    assert side.states() == {"a": "suspended"}


def test_nobody_is_gone_while_the_broker_is_away(side: RosterSide) -> None:
    side.join(msgspec.structs.replace(A, state="draining"))
    side.is_connected = False
    side.pass_s(60.0)
    side.roster.look([])
    assert side.names() == ["a-1"]


def test_heartbeats_of_strangers_are_ignored_and_those_of_members_kept(side: RosterSide) -> None:
    side.join(A)
    side.hear(A, B)
    assert side.roster.heartbeat("a-1") is not None
    assert side.roster.heartbeat("b-1") is None


def test_a_suspended_worker_is_asked_every_half_second_while_it_gives_signs_of_life(side: RosterSide) -> None:
    side.join(A)
    side.pass_s(2.6)
    assert side.states() == {"a": "suspended"}
    assert side.asked() == [], "nobody asks the dead"
    side.pass_s(0.1, A)
    assert side.asked() == ["a"]
    side.pass_s(0.4, A)
    assert side.asked() == []
    side.pass_s(0.1, A)
    assert side.asked() == ["a"]


def test_one_whose_heartbeats_were_interrupted_is_asked_again_as_they_resume(side: RosterSide) -> None:
    side.join(A, B)
    side.pass_s(0.3, A, B)
    side.pass_s(0.6, A)
    side.roster.on_reconnect()
    side.pass_s(0.2, A)
    assert side.asked() == ["a", "b"]
    side.pass_s(0.1, A, B)
    assert side.asked() == ["b"], "it was not reachable yet when it was asked"


# --- the broker -----------------------------------------------------------------------------------------------------


def test_after_a_reconnect_nothing_is_sent_until_others_have_had_time_to_reconnect(side: RosterSide) -> None:
    side.join(A, record("eye", role="vision"))
    [eye] = side.workers.vision.workers
    side.roster.on_reconnect()
    assert side.workers.is_paused
    side.clock.pass_s(TIMES.settle_s - 0.01)
    side.watch()
    assert side.workers.is_paused
    assert side.states() == {"a": "used"}
    side.clock.pass_s(0.02)
    side.watch()
    assert not side.workers.is_paused
    assert side.states() == {"a": "suspended"}, "what was in flight may be gone, so it has to answer first"
    assert (eye.num_outages, eye.num_deaths) == (1, 0), "and what it was asked is asked again, which blames nobody"
    assert side.asked() == ["a"], "at once"


async def test_stages_that_are_asked_after_an_outage_are_expected_until_they_answer(side: RosterSide) -> None:
    """Who fails on those that have answered may do well on the others."""
    c = record("c", 3, 6)
    side.join(A, B, c)
    side.roster.on_reconnect()
    side.pass_s(0.2, A, B, c)
    [ask_a, ask_b, _] = side.plan()
    side.take(ask_a)
    waits = asyncio.ensure_future(side.workers.expected_are_there())
    side.take(ask_b)
    await asyncio.sleep(0)
    assert not waits.done(), "c may answer yet"
    assert side.workers.has_route_without(["c-1"])
    assert not side.workers.has_route_without(["b-1"])
    side.pass_s(0.5, A, B, c)
    side.take(*side.plan())
    await waits
    assert side.workers.has_route_without(["b-1"])


async def test_a_stage_that_fell_silent_is_expected_back_for_a_while(side: RosterSide) -> None:
    side.join(A, B, c := record("c", 3, 6))
    side.pass_s(2.6, A, B)
    assert side.states()["c"] == "suspended"
    waits = await begun_waiting(side)
    side.hear(c)
    side.watch()
    side.take(*side.plan())
    await waits
    side.pass_s(2.6, A, B)
    side.pass_s(2.0, A, B)
    await side.workers.expected_are_there()
    assert side.states()["c"] == "suspended", "whoever is gone for longer is waited for no more"


async def test_a_vision_worker_that_fell_silent_is_expected_back_for_a_while(side: RosterSide) -> None:
    """Who failed on another, which may be sick, is not judged before it has come back or had its time."""
    side.join(sick := record("sick", role="vision"), eye := record("eye", role="vision"))
    has_other = partial(side.workers.vision.has_other, [sick.instance])
    side.pass_s(2.6, sick)
    waits = await begun_waiting(side, has_other)
    side.hear(eye)
    await waits
    assert has_other()
    side.pass_s(2.6, sick)
    assert not has_other()
    side.pass_s(2.0, sick)
    async with asyncio.timeout(1.0):
        await side.workers.expected_are_there(has_other)  # whoever is gone for longer is waited for no more


async def test_after_an_outage_vision_workers_are_expected_until_they_are_heard(side: RosterSide) -> None:
    """Who failed on one that is back, which may be sick, may do well on another."""
    side.join(sick := record("sick", role="vision"), eye := record("eye", role="vision"))
    has_other = partial(side.workers.vision.has_other, [sick.instance])
    side.pass_s(0.1)
    side.roster.on_reconnect()
    side.pass_s(0.2, sick)
    assert not has_other()
    waits = await begun_waiting(side, has_other)
    side.hear(eye)
    await waits
    assert has_other()


@pytest.mark.parametrize("watch_s", [0.05, 0.2, 0.5])
async def test_after_an_outage_a_vision_worker_is_expected_until_it_counts_as_silent(
    side: RosterSide, watch_s: float
) -> None:
    side.join(sick := record("sick", role="vision"), eye := record("eye", role="vision"))
    side.is_connected = False
    side.pass_s(1.0)
    side.is_connected = True
    side.roster.on_reconnect()
    side.pass_s(0.2, sick)
    [away] = [each for each in side.workers.vision.workers if each.record == eye]
    while away.is_alive:
        waits = await begun_waiting(side, partial(side.workers.vision.has_other, [sick.instance]))
        waits.cancel()
        side.clock.pass_s(watch_s)
        side.hear(sick)
        side.watch()
    assert away.record.instance in side.workers.vision.away


@pytest.mark.parametrize("role", ["vision", "stage"])
async def test_after_an_outage_that_was_seen_late_those_who_fell_silent_are_expected(
    side: RosterSide, role: Literal["vision", "stage"]
) -> None:
    side.join(sick := record("sick", role=role), record("other", role=role))
    side.pass_s(3.6)  # the connection is lost, and not yet given up
    side.is_connected = False
    side.pass_s(2.0)
    side.is_connected = True
    side.roster.on_reconnect()
    side.pass_s(0.2, sick)
    waits = await begun_waiting(side)
    waits.cancel()


async def test_a_vision_worker_that_left_is_expected_no_more(side: RosterSide) -> None:
    side.join(eye := record("eye", role="vision"))
    side.pass_s(2.6)
    side.workers.leave(eye, "it was started again")
    async with asyncio.timeout(1.0):
        await side.workers.expected_are_there()


async def test_who_comes_back_without_the_rest_of_its_route_is_not_enough(side: RosterSide) -> None:
    side.join(A, B, c := record("c", 3, 6))
    for each in (A, c):
        side.workers.suspend(each.instance, RequestTimeoutError("no answer"))
    waits = asyncio.ensure_future(side.workers.expected_are_there(lambda: side.workers.has_route_without(["b-1"])))
    for each in (c, A):
        await asyncio.sleep(0)
        assert not waits.done()
        side.workers.ask(each.instance)
        side.take(*side.plan())
    await waits
    assert side.workers.has_route_without(["b-1"])


def test_a_reconnect_of_one_connection_waits_for_the_other(side: RosterSide) -> None:
    side.join(A)
    side.is_connected = False
    side.roster.on_reconnect()
    side.pass_s(5.0)
    assert side.workers.is_paused
    side.is_connected = True
    side.pass_s(5.0, A)
    assert side.workers.is_paused, "its return will be told"
    side.roster.on_reconnect()
    side.pass_s(0.2, A)
    assert not side.workers.is_paused


def test_a_worker_that_was_asked_before_the_broker_went_is_asked_again_at_once(side: RosterSide) -> None:
    side.join(A)
    side.pass_s(2.6)
    side.pass_s(0.1, A)
    assert side.asked() == ["a"]
    side.roster.on_reconnect()
    side.pass_s(0.2, A)
    assert side.asked() == ["a"]
