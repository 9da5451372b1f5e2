"""One stage of several fails now and then, or always: no innocent job fails, and nobody but that stage is blamed."""

from __future__ import annotations

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.kit.simulated.simulation import Simulation

CUTS = {
    "copies": [("a0", 0, 4), ("a1", 0, 4)],
    "replicas": [("a0", 0, 2), ("a1", 0, 2), ("b0", 2, 4), ("b1", 2, 4)],
    "shared last": [("a0", 0, 2), ("a1", 0, 2), ("b", 2, 4)],
    "copy and stages": [("a0", 0, 4), ("b", 0, 2), ("c", 2, 4)],
}

JOBS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5), st.booleans()), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(cut=st.sampled_from(sorted(CUTS)), jobs=JOBS, pattern=st.lists(st.booleans(), min_size=1, max_size=20))
def test_no_innocent_job_fails(cut: str, jobs: list[tuple[int, int, bool]], pattern: list[bool]) -> None:
    simulation = Simulation()
    keys = [simulation.start_worker(name, start, stop, kv=64, batch=8) for name, start, stop in CUTS[cut]]
    for number, (num_prompt, max_tokens, may_be_poison) in enumerate(jobs):
        simulation.submit(num_prompt, max_tokens, is_poison=may_be_poison and number % 5 == 4)
    for number in range(2_000):
        simulation.plan()
        if all(job.outcome for job in simulation.jobs.values()):
            break
        simulation.sick = {keys[0]} if pattern[number % len(pattern)] else set()
        if simulation.network:
            simulation.deliver(simulation.network[0])
        else:
            simulation.now += 1.0
    assert all(job.outcome == "succeeded" for job in simulation.jobs.values() if not job.is_poison)
    assert all(job.outcome == "failed" for job in simulation.jobs.values() if job.is_poison)
    assert set(simulation.blamed) <= {keys[0]}
