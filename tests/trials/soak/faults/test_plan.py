"""Faults from a seed: what is drawn, how often, how far apart."""

from __future__ import annotations

from itertools import islice, product

import pytest

from broker_pipeline.errors import ConfigurationError
from trials.soak.faults.plan import FAULT_KINDS, parse_kinds, plan_faults

TARGETS = ("stage-0", "stage-1", "conductor-0", "gateway-0", "vision-0", "nats", "redis")


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    first, again, other = (list(islice(plan_faults(seed, TARGETS, FAULT_KINDS, every_s=5.0), 60)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_every_component_meets_every_kind_before_any_meets_one_twice() -> None:
    urn = set(product(TARGETS, ("kill", "stop", "partition", "restart", "slow")))
    urn |= {(target, "clock") for target in TARGETS[:5]} | {(target, "sick") for target in ("stage-1", "vision-0")}
    urn |= {("stage-0", "shm"), ("stage-1", "shm"), ("nats", "consumer"), ("nats", "stream")}
    urn |= {("redis", "garbled"), ("redis", "strange")}
    plan = plan_faults(1, TARGETS, FAULT_KINDS, every_s=5.0, spared=("stage-0",))
    faults = list(islice(plan, 3 * len(urn)))
    for start in range(0, len(faults), len(urn)):
        assert {(fault.target, fault.kind) for fault in faults[start : start + len(urn)]} == urn
    assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))


def test_pauses_are_random_around_the_mean() -> None:
    pauses = [fault.pause_s for fault in islice(plan_faults(3, TARGETS, FAULT_KINDS, every_s=5.0), 2000)]
    assert sum(pauses) / len(pauses) == pytest.approx(5.0, rel=0.03)
    assert min(pauses) >= 2.0
    assert max(pauses) <= 8.0
    assert len(set(pauses)) == len(pauses)


def test_some_come_together_and_the_mean_stays() -> None:
    plan = plan_faults(3, TARGETS, FAULT_KINDS, every_s=5.0, together=0.3)
    pauses = [fault.pause_s for fault in islice(plan, 2000)]
    assert pauses.count(0.0) / len(pauses) == pytest.approx(0.3, rel=0.1)
    assert sum(pauses) / len(pauses) == pytest.approx(5.0, rel=0.05)


def test_what_hangs_or_is_cut_off_stays_away_for_longer_than_its_detection_takes() -> None:
    for fault in islice(plan_faults(3, TARGETS, FAULT_KINDS, every_s=5.0), 500):
        if fault.kind in {"kill", "restart", "consumer", "stream", "garbled", "strange"}:
            assert fault.away_s == 0
        elif fault.target.startswith("conductor"):
            assert fault.away_s > 5.0  # the lease
        elif fault.target.startswith(("stage", "vision")):
            assert fault.away_s > 2.5  # heartbeats
        else:
            assert fault.away_s > 0


def test_nothing_to_hit_is_no_fault() -> None:
    assert list(plan_faults(1, TARGETS, (), every_s=1.0)) == []
    assert list(plan_faults(1, (), FAULT_KINDS, every_s=1.0)) == []


def test_kinds_are_read_from_a_list() -> None:
    assert parse_kinds("kill, partition") == ("kill", "partition")
    assert parse_kinds("") == ()
    assert parse_kinds("all") == FAULT_KINDS


@pytest.mark.parametrize(
    ("text", "reason"), [("kill,explode", "explode is none of kill, stop"), ("kill,kill", "twice")]
)
def test_wrong_kinds_are_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        parse_kinds(text)
    assert caught.value.field == "faults"
