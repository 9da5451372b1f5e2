"""Some schedules, the same ones each time, and that the simulation finds what it is there to find.

`python -m tests.simulation -n` runs more.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys

import pytest
import structlog

from broker_pipeline.scheduling.policies.retries import Retry, RetryPolicy
from tests.kit.acting import workers
from tests.kit.acting.workers import ActingStage
from tests.simulation import world
from tests.simulation.faults import Fault
from tests.simulation.schedule import Schedule, draw
from tests.simulation.simulate import simulate

_BLOCK = 100


@pytest.fixture(autouse=True)
def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


@pytest.mark.parametrize("first", range(0, 6 * _BLOCK, _BLOCK))
def test_whatever_happens_every_job_ends_once_and_right(first: int) -> None:
    for seed in range(first, first + _BLOCK):
        verdict = simulate(seed)
        assert not verdict.problems, str(verdict)


# Each fails where the mend that it stands for is taken back. Since workers have phases of their own, messages of a seed
# are under way for other times, and no seed is known that fails without the mends of what 19730, 42281, 140405 and
# 459554 found: tests of the parts stand for these (`Asked.noting`, `InFlightTable.drop_before`, whom `Workers` expect).
@pytest.mark.parametrize(
    "seed",
    [
        40563,  # a step larger than any before is given no more time than a first one
        250751,  # stages close what they keep by name only
        376898,  # a share whose stage's record Redis has lost counts for a while
        472787,  # vision workers that are not back after an outage are expected
        473531,  # nothing comes for a link without a connection
        1032642,  # a failure is judged when all have answered who are expected (778752 found that)
    ],
)
def test_what_went_wrong_once_goes_right(seed: int) -> None:
    verdict = simulate(seed)
    assert not verdict.problems, str(verdict)


def _without_a_conductor(seed: int, *, by_nats: bool) -> Schedule:
    """Have a conductor, or NATS, away for a while, and Redis take its time, so that much is under way just then."""
    drawn, chance = draw(seed), random.Random(seed)
    jobs = tuple(dataclasses.replace(job, is_poison=False) for job in drawn.jobs)
    at_s, kind, for_s = chance.uniform(0.1, 0.7), chance.choice(("cut", "stop")), chance.uniform(1.5, 4.0)
    away = Fault(at_s, kind, "conductor-0", for_s, chance.random())
    if by_nats:
        away = dataclasses.replace(away, kind="restart", target="nats", detail=1.0)
    slow = Fault(0.0, "slow", "redis", away.ends_s, 0.07)
    return dataclasses.replace(drawn, num_conductors=2, jobs=jobs, faults=(slow, away))


# Each takes six to ten seconds longer where its mend is taken back.
@pytest.mark.parametrize(
    ("seed", "by_nats"),
    [
        (1027, False),  # what a conductor had asked of Redis arrives when another has taken over
        (1378, False),
        (420, False),  # what a conductor had asked the queue for arrives when it has let go
        (211, True),  # what NATS delivered just before it was killed, or was told then, does not arrive
        (312, True),
    ],
)
def test_no_job_waits_until_the_queue_gives_it_out_by_itself(
    seed: int, by_nats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "_ACK_WAIT_S", 10.0)
    verdict = simulate(seed, _without_a_conductor(seed, by_nats=by_nats))
    assert not verdict.problems, str(verdict)
    assert verdict.took_s - verdict.schedule.quiet_from_s < 3.0


def test_a_seed_is_one_history_also_in_another_process() -> None:
    code = (
        "import json, structlog; from tests.simulation.simulate import simulate;"
        "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50));"
        "print(json.dumps([simulate(seed).history for seed in range(8)]))"
    )
    env = os.environ | {"PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == [list(simulate(seed).history) for seed in range(8)]


def _first_problem(seeds: range) -> str:
    return next((str(verdict) for seed in seeds if (verdict := simulate(seed)).problems), "")


def test_it_finds_stages_that_keep_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActingStage, "_close", lambda *_: None)
    assert "KV" in _first_problem(range(1))


def test_it_finds_wrong_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "right_token", lambda *_: 32)
    assert "has tokens [32" in _first_problem(range(1))


def test_it_finds_jobs_that_pay_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    after = RetryPolicy.after

    def unfair(self: RetryPolicy, failure: object, *, is_blamed: bool, **rest: object) -> object:
        verdict = after(self, failure, is_blamed=is_blamed, **rest)  # type: ignore[arg-type]
        return verdict if isinstance(verdict, Retry) and not is_blamed else failure

    monkeypatch.setattr(RetryPolicy, "after", unfair)
    problem = _first_problem(range(40))
    assert "has failed" in problem
    assert "replay: python -m tests.simulation --seed" in problem
