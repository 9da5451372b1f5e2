from dataclasses import replace

import pytest

from broker_pipeline.scheduling.policies.admission import Admission, AdmissionLimits, Load

FREE = Load(
    num_jobs=0, num_preparing=0, num_waiting=0, num_vision_workers=1, num_routes=1, room_tokens=10_000, can_commit=True
)


@pytest.fixture
def admission() -> Admission:
    return Admission(AdmissionLimits(max_jobs=10, max_preparing_per_vision_worker=4, max_waiting=3), 1000)


def test_an_idle_pipeline_takes_jobs(admission: Admission) -> None:
    assert admission.refusal(FREE) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"can_commit": False}, "Redis"),
        ({"num_routes": 0}, "no route"),
        ({"num_vision_workers": 0}, "no vision worker"),
        ({"num_jobs": 10}, "enough jobs"),
        ({"num_preparing": 4}, "preparation"),
        ({"num_waiting": 3}, "waiting"),
        ({"num_waiting": 1, "room_tokens": 999}, "no room"),
    ],
)
def test_it_says_why_not(admission: Admission, changes: dict[str, int], reason: str) -> None:
    refusal = admission.refusal(replace(FREE, **changes))  # type: ignore[arg-type]
    assert refusal is not None
    assert reason in refusal


def test_more_vision_workers_prepare_more(admission: Admission) -> None:
    assert admission.refusal(replace(FREE, num_preparing=7, num_vision_workers=2)) is None


def test_shares_prepare_as_much_together_as_one_alone(admission: Admission) -> None:
    assert admission.refusal(replace(FREE, num_preparing=1, num_shares=2)) is None
    assert admission.refusal(replace(FREE, num_preparing=2, num_shares=2)) is not None


def test_more_routes_have_more_waiting(admission: Admission) -> None:
    assert admission.refusal(replace(FREE, num_waiting=5, num_routes=2)) is None
    assert admission.refusal(replace(FREE, num_waiting=6, num_routes=2)) is not None


def test_one_job_is_fetched_ahead_however_full_the_stages_are(admission: Admission) -> None:
    assert admission.refusal(replace(FREE, room_tokens=-500)) is None


def test_it_learns_what_jobs_need(admission: Admission) -> None:
    for _ in range(200):
        admission.learn(200)
    assert admission.expected_tokens == pytest.approx(200, abs=5)
    assert admission.refusal(replace(FREE, num_waiting=1, room_tokens=300)) is None


@pytest.mark.parametrize(
    ("changes", "num_wanted"),
    [({}, 3), ({"num_waiting": 1}, 2), ({"num_preparing": 3}, 1), ({"num_jobs": 8}, 2), ({"room_tokens": -500}, 1)],
)
def test_it_asks_for_no_more_jobs_than_can_begin_soon(
    admission: Admission, changes: dict[str, int], num_wanted: int
) -> None:
    assert admission.num_wanted(replace(FREE, **changes)) == num_wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "num_batch"),
    [
        ({"room_tokens": -500}, 1),  # nothing is ahead: one is fetched however full the stages are
        ({"num_preparing": 1}, 2),
        ({"num_preparing": 3}, 0),
        ({"num_preparing": 1, "room_tokens": 1500, "kv_tokens": 16_000}, 0),
        ({"num_preparing": 1, "room_tokens": 2000, "kv_tokens": 16_000}, 1),
        ({"num_preparing": 1, "num_jobs": 8}, 0),
    ],
)
def test_batch_jobs_leave_interactive_ones_some_room(
    admission: Admission, changes: dict[str, int], num_batch: int
) -> None:
    load = replace(FREE, **changes)  # type: ignore[arg-type]
    assert admission.num_batch_wanted(load) == num_batch
    assert admission.num_wanted(load) >= max(1, num_batch)
