"""How many microbatches a lane keeps in flight while prompts wait for their turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.lane import Lane
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.session_state import SessionState
from broker_pipeline.scheduling.step_cost import StepCost
from tests.kit.simulated.stages import prompt_of

ROUTE = Route((StageInfo("w", "w", "s.w", BlockRange(start=0, stop=1), 10_000_000, 4096),))
PROMPT, OUTPUT = 219, 64
# Of 8B with its tower on one H200, in a round of captions: the largest were seen before the tower had much to do.
STEPS_MS = {36: 5.7, 65: 6.1, 118: 8.7, 271: 12.7, 670: 20.3, 1320: 40.9, 2277: 72.3, 4094: 94.9}
OUTSIDE_S = 0.0086


def _session(number: int, *, has_spoken: bool) -> SessionState:
    session = SessionState(
        key=SessionKey(f"s{number}", 1),
        order=number,
        route=ROUTE,
        prompt=prompt_of(PROMPT),
        sampling=SamplingSettings(),
        num_kv_tokens=PROMPT + OUTPUT,
    )
    session.num_reserved_tokens = PROMPT + OUTPUT
    if has_spoken:
        session.generated, session.num_computed_tokens, session.is_open = [1], PROMPT, True
    return session


def _lane(num_speaking: int, num_prompts: int, max_step_sessions: int = 0) -> Lane:
    lane = Lane(Route((replace(ROUTE.workers[0], max_step_sessions=max_step_sessions),)))
    ended = _session(-1, has_spoken=True)
    ended.generated = [1] * OUTPUT
    lane.start(ended)
    lane.remove(ended.key)
    for number in range(num_speaking + num_prompts):
        lane.start(_session(number, has_spoken=number < num_speaking))
    lane.observe_outside(OUTSIDE_S)
    return lane


def test_prompts_that_wait_for_their_turn_keep_no_second_microbatch_away() -> None:
    """A round takes few of them along, so that it never has the size at which one microbatch would be best."""
    taken = _taken(_lane(224, 22), STEPS_MS)
    assert len(taken) == 2
    assert all(500 < sum(segment.count for segment in segments) < 900 for segments in taken)


@pytest.mark.parametrize(("limit", "sizes"), [(0, [600]), (256, [256, 256]), (1024, [600])])
def test_no_step_has_more_sessions_than_stages_have_graphs_for(limit: int, sizes: list[int]) -> None:
    """A step of all would be best by what steps cost, but with few of them under way a stage has pauses."""
    taken = _taken(_lane(600, 0, limit), {number: 20.0 + number / 100 for number in (64, 128, 256, 512, 1024)})
    assert [len(segments) for segments in taken] == sizes


def test_prompts_come_at_the_pace_of_the_sessions_of_a_step() -> None:
    """In a step of a quarter of the sessions, a quarter of the prompts that a round has."""
    whole, part = (_taken(_lane(1000, 40, limit), STEPS_MS)[0] for limit in (0, 250))
    num_whole, num_part = (sum(segment.count > 1 for segment in segments) for segments in (whole, part))
    assert 0 < num_part <= num_whole / 2


def _taken(lane: Lane, steps_ms: Mapping[int, float]) -> list[tuple[PlannedSegment, ...]]:
    cost, taken = StepCost(), []
    for num_tokens, ms in steps_ms.items():
        cost.observe(num_tokens, ms / 1e3)
    while segments := lane.take([cost], 4096):
        number, num_tokens = len(taken), sum(segment.count for segment in segments)
        taken.append(segments)
        lane.in_flight[number] = PlannedBatch(number, lane.route, segments, (), 0.0, 1.0, num_tokens=num_tokens)
    return taken
