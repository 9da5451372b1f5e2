"""Any interleaving of completions, failures and losses: never over-committed, right tokens, everything ends.

And nobody starves: a session that needs nearly all KV ends while small ones keep coming.
"""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker_pipeline.scheduling.drafts.limits import DraftLimits
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.policies.prefixes import BLOCK_TOKENS
from tests.kit.simulated.simulation import Simulation

CUTS = {
    "one stage": [("a", 0, 4)],
    "three stages": [("a", 0, 1), ("b", 1, 2), ("c", 2, 4)],
    "replicas": [("a0", 0, 2), ("a1", 0, 2), ("b0", 2, 4), ("b1", 2, 4)],
    "shared last": [("a0", 0, 2), ("a1", 0, 2), ("b", 2, 4)],
    "mixed": [("whole", 0, 4), ("a", 0, 3), ("b", 3, 4)],
}


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        cut=st.sampled_from(sorted(CUTS)),
        step=st.integers(1, 6),
        shares_prefixes=st.booleans(),
        drafts=st.builds(DraftLimits, st.sampled_from([0, 1, 4, 7]), st.integers(1, 4)),
    )
    def start(self, cut: str, step: int, shares_prefixes: bool, drafts: DraftLimits) -> None:
        limits = SchedulerLimits(kv_step_tokens=step, drafts=drafts)
        self.simulation = Simulation(limits=limits, shares_prefixes=shares_prefixes)
        self.scale = BLOCK_TOKENS if shares_prefixes else 1
        self.ranges = {name: (start, stop) for name, start, stop in CUTS[cut]}
        self.start_missing()

    def pick(self, data: st.DataObject, items: list) -> object:  # type: ignore[type-arg]
        return data.draw(st.sampled_from(items))

    @rule(jobs=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.booleans()), min_size=1, max_size=5))
    def submit(self, jobs: list[tuple[int, int, bool]]) -> None:
        for num_prompt, max_tokens, may_be_poison in jobs:
            is_poison = may_be_poison and len(self.simulation.jobs) % 4 == 3
            self.simulation.submit(num_prompt * self.scale, max_tokens, is_poison=is_poison)
        self.simulation.plan()

    @rule()
    def plan(self) -> None:
        self.simulation.plan()

    @precondition(lambda self: self.simulation.network)
    @rule(data=st.data())
    def answer_some(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 12))):
            if self.simulation.network:
                self.simulation.deliver(self.pick(data, self.simulation.network))
                self.simulation.plan()

    @precondition(lambda self: self.simulation.network)
    @rule(data=st.data(), at=st.integers(0, 2))
    def break_one(self, data: st.DataObject, at: int) -> None:
        self.simulation.deliver(self.pick(data, self.simulation.network), break_at=at)

    @precondition(lambda self: self.simulation.network)
    @rule(data=st.data(), at=st.integers(0, 2))
    def lose_one_on_the_way(self, data: st.DataObject, at: int) -> None:
        self.simulation.deliver(self.pick(data, self.simulation.network), lose_at=at)

    @precondition(lambda self: self.simulation.network)
    @rule(data=st.data(), at=st.integers(0, 2), num=st.integers(1, 8))
    def spoil_some(self, data: st.DataObject, at: int, num: int) -> None:
        self.simulation.deliver(self.pick(data, self.simulation.network), spoil_at=at, num_spoilt=num)

    @rule(seconds=st.sampled_from([0.1, 3.0, 200.0]))
    def pass_time(self, seconds: float) -> None:
        self.simulation.now += seconds
        self.simulation.expire()

    @precondition(lambda self: self.simulation.stages)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.simulation.kill_worker(self.pick(data, sorted(self.simulation.stages)))

    @rule()
    def start_missing(self) -> None:
        running = {stage.worker.name for stage in self.simulation.stages.values()}
        for name, blocks in self.ranges.items():
            if name not in running:
                self.simulation.start_worker(name, *blocks, kv=64 * self.scale, batch=8 * self.scale)

    @precondition(lambda self: self.simulation.stages)
    @rule(data=st.data())
    def suspend(self, data: st.DataObject) -> None:
        self.simulation.suspend(self.pick(data, sorted(self.simulation.stages)))

    @rule()
    def probe_late(self) -> None:
        self.simulation.probe_late()

    @rule()
    def probe(self) -> None:
        self.simulation.probe_all()

    @precondition(lambda self: any(not job.outcome for job in self.simulation.jobs.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.simulation.cancel(self.pick(data, [job for job in self.simulation.jobs.values() if not job.outcome]))

    @invariant()
    def no_stage_is_over_committed(self) -> None:
        if hasattr(self, "simulation"):
            self.simulation.check()

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        self.start_missing()
        self.simulation.run()
        self.simulation.check_ended()
        for job in self.simulation.jobs.values():
            assert job.outcome in ("succeeded", "failed", "cancelled")
            if job.is_poison and job.outcome != "cancelled":
                assert job.outcome == "failed"


SchedulerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestScheduler = SchedulerMachine.TestCase


@settings(max_examples=15, deadline=None)
@given(
    cut=st.sampled_from(sorted(CUTS)),
    small=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), min_size=1, max_size=6),
    num_before=st.integers(0, 10),
)
def test_a_large_session_ends_while_small_ones_keep_coming(
    cut: str, small: list[tuple[int, int]], num_before: int
) -> None:
    simulation = Simulation()
    for name, start, stop in CUTS[cut]:
        simulation.start_worker(name, start, stop, kv=64, batch=32)
    for number in range(num_before):
        simulation.submit(*small[number % len(small)])
    large = simulation.submit(50, 4)
    num_small = 0
    while not large.outcome:
        num_small += 1
        simulation.now += 0.05
        assert num_small < 400, "small sessions pass it for ever"
        if sum(not job.outcome for job in simulation.jobs.values()) < 12:
            simulation.submit(*small[num_small % len(small)])
        simulation.plan()
        if simulation.network:
            simulation.deliver(simulation.network[0])
    assert large.outcome == "succeeded"
    simulation.run()
    simulation.check_ended()
