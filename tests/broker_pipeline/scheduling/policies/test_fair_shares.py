"""Whose job is next: whatever waits, and whatever comes and goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.messages.jobs import Flow, Priority
from broker_pipeline.scheduling.policies.fair_shares import INTERACTIVE_PER_BATCH, FairShares

PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")
TENANTS = "abcdef"
MILLION = 1_000_000

flows = st.builds(Flow, st.sampled_from(PRIORITIES), st.sampled_from(TENANTS))
weights = st.fixed_dictionaries({name: st.sampled_from((0.5, 1.0, 2.0, 3.0, 7.0)) for name in TENANTS})
backlogs = st.dictionaries(flows, st.integers(0, 40), max_size=8)


def shares_of(weights: Mapping[str, float]) -> FairShares:
    return FairShares(lambda tenant: weights.get(tenant, 1.0))


def taken(shares: FairShares, waiting: dict[Flow, int], num_jobs: int) -> list[Flow]:
    """Take jobs one after the other, as many as wait."""
    order = []
    for _ in range(min(num_jobs, sum(waiting.values()))):
        flow = shares.next_of({flow: num for flow, num in waiting.items() if num > 0})
        shares.take(flow)
        waiting[flow] -= 1
        order.append(flow)
    return order


@given(weights, st.lists(st.tuples(backlogs, st.integers(1, 30)), max_size=5))
def test_a_plan_takes_what_there_is_in_the_order_of_turns(
    weights: dict[str, float], rounds: list[tuple[dict[Flow, int], int]]
) -> None:
    """However many are asked for at a time, and nothing is charged before it is taken."""
    shares, one_by_one = shares_of(weights), shares_of(weights)
    for backlog, num_wanted in rounds:
        planned = shares.plan(backlog, num_wanted)
        assert shares.plan(backlog, num_wanted) == planned
        assert sum(planned.values()) == min(num_wanted, sum(backlog.values()))
        order = taken(one_by_one, dict(backlog), num_wanted)
        assert planned == Counter(order)
        for flow in order:
            shares.take(flow)


@given(weights, backlogs, st.integers(1, 30), st.integers(0, 30))
def test_no_more_batch_jobs_are_planned_than_there_may_be(
    weights: dict[str, float], backlog: dict[Flow, int], num_wanted: int, num_batch: int
) -> None:
    planned = shares_of(weights).plan(backlog, num_wanted, num_batch)
    batch = sum(num for flow, num in planned.items() if flow.priority == "batch")
    batch_waits = sum(num for flow, num in backlog.items() if flow.priority == "batch")
    interactive_waits = sum(backlog.values()) - batch_waits
    assert batch <= num_batch
    assert sum(planned.values()) >= min(num_wanted, interactive_waits + min(batch_waits, num_batch))


@given(weights, st.sets(st.sampled_from(TENANTS), min_size=2), st.sampled_from(PRIORITIES), st.integers(1, 400))
def test_tenants_that_always_wait_get_jobs_by_their_weights(
    weights: dict[str, float], tenants: set[str], priority: Priority, num_jobs: int
) -> None:
    """At every moment, and to a job each."""
    waiting = {Flow(priority, tenant): MILLION for tenant in tenants}
    had = Counter(flow.tenant for flow in taken(shares_of(weights), waiting, num_jobs))
    for one in tenants:
        for other in tenants:
            assert (had[one] - 1) / weights[one] <= (had[other] + 1) / weights[other] + 1e-9


@given(weights, st.integers(0, 300), st.integers(1, 10), st.sampled_from(PRIORITIES))
def test_a_few_jobs_beside_a_million_wait_for_their_own_share_only(
    weights: dict[str, float], num_before: int, num_few: int, priority: Priority
) -> None:
    """Whatever the other has had before: the first is next, and each other one a turn later."""
    shares = shares_of(weights)
    large, small = Flow(priority, "a"), Flow(priority, "b")
    waiting = {large: MILLION}
    taken(shares, waiting, num_before)
    waiting[small] = num_few
    order = taken(shares, waiting, num_few * 20)
    places = [place for place, flow in enumerate(order) if flow == small]
    assert len(places) == num_few
    assert places[0] <= 1
    for number, place in enumerate(places):
        assert place <= number + 1 + (number + 1) * weights["a"] / weights["b"]


@settings(deadline=None)
@given(weights, st.lists(flows, min_size=1, max_size=12, unique=True), st.integers(0, 200))
def test_nobody_starves(weights: dict[str, float], waiting: list[Flow], num_before: int) -> None:
    """Each flow that waits is served within a bound that no backlog changes."""
    shares = shares_of(weights)
    taken(shares, {waiting[0]: MILLION}, num_before)
    bound = (INTERACTIVE_PER_BATCH + 1) * sum(2 + weights[flow.tenant] / min(weights.values()) for flow in waiting)
    order = taken(shares, dict.fromkeys(waiting, MILLION), round(bound))
    assert set(order) == set(waiting)


@given(weights, st.lists(flows, min_size=1, max_size=12, unique=True), st.integers(1, 200))
def test_interactive_jobs_go_first_and_batch_jobs_keep_one_in_sixteen(
    weights: dict[str, float], waiting: list[Flow], num_jobs: int
) -> None:
    order = taken(shares_of(weights), dict.fromkeys(waiting, MILLION), num_jobs)
    num_batch = sum(flow.priority == "batch" for flow in order)
    kinds = {flow.priority for flow in waiting}
    if kinds == {"batch", "interactive"}:
        assert num_batch == num_jobs // (INTERACTIVE_PER_BATCH + 1)
    else:
        assert num_batch == (num_jobs if kinds == {"batch"} else 0)


@given(weights, st.integers(0, 100), st.integers(0, 100))
def test_nobody_saves_up_turns_while_away(weights: dict[str, float], num_before: int, num_alone: int) -> None:
    shares = shares_of(weights)
    one, other = Flow("batch", "a"), Flow("batch", "b")
    taken(shares, {one: MILLION, other: MILLION}, num_before)
    taken(shares, {one: MILLION}, num_alone)
    had = Counter(taken(shares, {one: MILLION, other: MILLION}, 60))
    assert had[one] >= 60 * weights["a"] / (weights["a"] + weights["b"]) - 2 - weights["a"] / weights["b"]


def test_who_comes_next_stands_beside_the_first_that_waits_not_behind_the_last() -> None:
    """What one tenant's jobs wait for that were taken already, another's new ones do not."""
    waiting: list[float] = []
    shares = FairShares(first_waiting=lambda _: min(waiting, default=float("inf")))
    waiting += [shares.take(Flow("batch", "large")).tag for _ in range(64)]
    mine = [shares.take(Flow("batch", "small")).tag for _ in range(10)]
    assert [sum(tag < each for tag in waiting) for each in mine] == list(range(10))


def test_what_is_remembered_is_bounded() -> None:
    shares = FairShares()
    for number in range(30_000):
        shares.take(Flow("batch", f"tenant-{number}"))
        shares.take(Flow("batch", "large"))
    assert len(shares._tags) <= 10_001
