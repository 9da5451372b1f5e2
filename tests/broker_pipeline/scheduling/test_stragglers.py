"""A route that becomes slow loses its sessions, whatever the sizes of its microbatches and of others' are then."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from broker_pipeline.messages.activation import StageTiming
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.scheduling.session_state import SessionState
from tests.kit.acting.stage_side import answer
from tests.kit.simulated.stages import prompt_of, stage_worker


class TwoRoutes:
    """Routes `a` and `b` of one stage each, that take `seconds` for a step of any size; each session is given one."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(num_layers=4)
        self.seconds = {"a": 0.004, "b": 0.004}
        self.now = 0.0
        for name in self.seconds:
            self.scheduler.join(replace(stage_worker(name, 0, 4, kv=100_000, batch=256), verifies_drafts=False))
        self.routes: dict[str, Route] = {str(route): route for route in self.scheduler.routes.open_routes}
        self._orders = itertools.count()

    def start(self, name: str) -> str:
        order = next(self._orders)
        session = SessionState(
            key=SessionKey(f"{name}{order}", 1), order=order, route=self.routes[name], prompt=prompt_of(4),
            sampling=SamplingSettings(), num_kv_tokens=2000,
        )  # fmt: skip
        assert self.scheduler.add(session, self.now) is None
        return session.key.session

    def run(self, num_rounds: int) -> None:
        for _ in range(num_rounds):
            for microbatch in self.scheduler.plan(self.now):
                name = str(microbatch.route)
                timing = StageTiming(worker=name, queue_s=0.0, compute_s=self.seconds[name])
                self.scheduler.complete(answer(microbatch, timings=(timing,)), self.now)
            self.now += max(self.seconds.values())


@pytest.mark.parametrize("num_others", [0, 1, 2, 4, 8])
def test_a_route_that_becomes_slow_loses_its_sessions(num_others: int) -> None:
    """Steps of all other sizes were measured before it became slow."""
    pair = TwoRoutes()
    sessions: dict[str, list[str]] = {"a": [], "b": []}
    for name in ["a", "b"] * 8:  # microbatches of one session, of two, ...
        sessions[name].append(pair.start(name))
        pair.run(12)
    for session in [*sessions["a"][num_others:], *sessions["b"][4:]]:
        pair.scheduler.release(session)
    pair.run(40)
    pair.seconds["b"] = 0.2
    pair.run(20)
    assert sorted(lost.session.key.session for lost in pair.scheduler.leave_stragglers(pair.now)) == sessions["b"][:4]


def test_one_is_not_slow_for_having_fewer_sessions_than_the_other_ever_had() -> None:
    pair = TwoRoutes()
    for _ in range(32):
        pair.start("a")
    pair.run(20)
    pair.start("b")
    pair.run(20)
    assert pair.scheduler.leave_stragglers(pair.now) == []


def test_busy_sessions_stay_where_they_are_however_long_another_route_has_been_idle() -> None:
    pair = TwoRoutes()
    for name in pair.routes:
        pair.scheduler.release(pair.start(name))
        short = pair.start(name)
        pair.run(20)
        pair.scheduler.release(short)
    pair.start("a")
    for _ in range(400):
        pair.run(2)
        pair.now += 1.0
        assert pair.scheduler.leave_stragglers(pair.now) == []
