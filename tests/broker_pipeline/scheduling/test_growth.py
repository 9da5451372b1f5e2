"""KV in steps: who grows, who is preempted, who comes back, and that nobody starves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.errors import Failure
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.planned_batch import PlannedBatch
from broker_pipeline.scheduling.policies.kv_steps import KVSteps
from broker_pipeline.scheduling.session_state import SessionState
from tests.kit.simulated.simulation import SimulatedJob, Simulation

CUTS = {
    "one stage": [("a", 0, 4)],
    "three stages": [("a", 0, 1), ("b", 1, 2), ("c", 2, 4)],
    "shared last": [("a0", 0, 2), ("a1", 0, 2), ("b", 2, 4)],
    "copies": [("a", 0, 4), ("b", 0, 4)],
}


class Watched(Simulation):
    """A simulation that holds every plan against what is promised of preemptions."""

    def __init__(self, step: int) -> None:
        super().__init__(limits=SchedulerLimits(kv_step_tokens=step))
        self.step = step

    def running(self) -> dict[str, SessionState]:
        return {
            session.key.session: session for lane in self.scheduler.routes.lanes for session in lane.running.values()
        }

    def preempted(self) -> list[SessionState]:
        return [session for session in self.scheduler._waiting if session.is_preempted]

    def plan(self) -> list[PlannedBatch]:
        before, num_resumed = self.running(), len(self.resumed)
        planned = super().plan()
        after = self.running()
        for name in before.keys() - after.keys():
            session = before[name]
            others = [each for each in before.values() if set(each.route.key) & set(session.route.key)]
            assert any(each.order < session.order for each in others), "the oldest of a worker was preempted"
        for name in after.keys() - before.keys():
            assert not self._older_waiting(after[name]), "a younger session was admitted before one that was preempted"
        for name in self.resumed[num_resumed:]:
            num_tokens = self.jobs[name].num_prompt + len(self.jobs[name].generated)
            needed = min(num_tokens + self.step, self.jobs[name].num_kv_tokens)
            routes = self.scheduler.routes.open_routes
            assert max(map(self.scheduler.ledger.free_tokens, routes)) >= needed, "it would be preempted again"
        return planned

    def _older_waiting(self, session: SessionState) -> list[SessionState]:
        return [
            each
            for each in self.preempted()
            if each.order < session.order and set(each.route.key) & set(session.route.key)
        ]


def started(cut: str, kv: int, step: int) -> Watched:
    simulation = Watched(step)
    for name, start, stop in CUTS[cut]:
        simulation.start_worker(name, start, stop, kv=kv, batch=32)
    return simulation


def ended(simulation: Watched) -> None:
    simulation.run()
    simulation.check_ended()
    assert all(job.outcome == "succeeded" for job in simulation.jobs.values())
    assert all(job.num_lost == 0 for job in simulation.jobs.values()), "a preemption is no attempt"


def num_done(job: SimulatedJob) -> int:
    return len(job.generated)


def test_a_session_takes_what_it_needs_and_a_step_or_what_outputs_usually_come_to():
    steps = KVSteps(8)
    assert steps.num_tokens(10, 10, 100) == 18
    assert steps.num_tokens(10, 95, 100) == 100, "never more than its limit"
    for num_output in (20, 40):
        steps.learn(num_output)
    assert steps.num_tokens(10, 10, 100) == 40
    assert steps.num_tokens(10, 39, 100) == 47


def test_more_sessions_run_than_their_limits_would_let():
    simulation = started("one stage", kv=64, step=4)
    for _ in range(6):
        simulation.submit(4, 28)
    simulation.plan()
    assert len(simulation.running()) == 6, "whole limits would take 192 tokens"
    ended(simulation)
    assert simulation.scheduler.growth.num_preemptions > 0


def test_the_youngest_is_preempted_and_comes_back_with_its_tokens():
    simulation = started("three stages", kv=32, step=2)
    old, young = simulation.submit(4, 20), simulation.submit(4, 20)
    while not simulation.preempted():
        simulation.plan()
        simulation.deliver(simulation.network[0])
    assert [session.key.session for session in simulation.preempted()] == [young.name]
    done = num_done(young)
    assert done > 0
    while not old.outcome:
        simulation.plan()
        simulation.deliver(simulation.network[0])
    assert num_done(young) == done
    ended(simulation)
    assert simulation.resumed == [young.name]


def test_a_preempted_session_goes_where_there_is_room():
    simulation = started("one stage", kv=32, step=2)
    simulation.submit(4, 24)
    simulation.submit(4, 24)
    while not simulation.preempted():
        simulation.plan()
        simulation.deliver(simulation.network[0])
    simulation.start_worker("other", 0, 4, kv=32, batch=32)
    simulation.plan()
    assert simulation.resumed == ["job1"]
    ended(simulation)


def test_stages_that_die_while_sessions_are_preempted_lose_nothing():
    simulation = started("three stages", kv=32, step=2)
    for _ in range(4):
        simulation.submit(4, 24)
    while not simulation.preempted():
        simulation.plan()
        simulation.deliver(simulation.network[0])
    simulation.kill_worker(next(iter(simulation.stages)))
    assert not simulation.preempted(), "they wait for a route, as all do"
    simulation.start_worker("a", 0, 1, kv=32, batch=32)
    simulation.run()
    simulation.check_ended()
    assert all(job.outcome == "succeeded" for job in simulation.jobs.values())


def test_a_preempted_session_can_be_cancelled_and_its_worker_suspended():
    simulation = started("one stage", kv=32, step=2)
    jobs = [simulation.submit(4, 24) for _ in range(3)]
    while len(simulation.preempted()) < 2:
        simulation.plan()
        simulation.deliver(simulation.network[0])
    simulation.cancel(jobs[2])
    assert [session.key.session for session in simulation.preempted()] == [jobs[1].name]
    simulation.lost(simulation.scheduler.suspend(next(iter(simulation.stages)), Failure("stage", "late")))
    assert not simulation.preempted()


@settings(max_examples=60, deadline=None)
@given(
    cut=st.sampled_from(sorted(CUTS)),
    step=st.integers(1, 8),
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 44)), min_size=2, max_size=10),
    data=st.data(),
)
def test_whatever_comes_every_session_ends_and_the_oldest_always_advances(
    cut: str, step: int, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    simulation = started(cut, kv=64, step=step)
    oldest = simulation.submit(*sizes.pop())
    num_steps = 0
    while not oldest.outcome:
        if sizes and data.draw(st.booleans()):
            simulation.submit(*sizes.pop())
        simulation.plan()
        if simulation.network:
            simulation.deliver(simulation.network[data.draw(st.integers(0, len(simulation.network) - 1))])
        simulation.now += 0.05
        num_steps += 1
        assert num_steps < 400, "the oldest stands still"
    for size in sizes:
        simulation.submit(*size)
    ended(simulation)
