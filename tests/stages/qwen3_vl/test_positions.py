"""Positions of prompts on three axes."""

from __future__ import annotations

import pytest

from broker_pipeline.errors import TensorMismatchError
from stages.qwen3_vl.positions import VisualGroup, decode_positions, plan_positions
from stages.qwen3_vl.rope import frequency_axes


def test_the_worked_example():
    plan = plan_positions(15, [VisualGroup(start=4, height=2, width=3, visual_row=0)])
    assert plan.positions.tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8, 9, 10, 11],
        [0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 7, 8, 9, 10, 11],
        [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 10, 11],
    ]
    assert plan.delta == -3


def test_text_counts_on_all_axes():
    plan = plan_positions(5, [])
    assert plan.positions.tolist() == [list(range(5))] * 3
    assert plan.delta == 0


def test_decoding_goes_on_where_the_prompt_ended():
    plan = plan_positions(15, [VisualGroup(4, 2, 3, 0)])
    assert decode_positions(15, 2, plan.delta).tolist() == [[12, 13]] * 3


def test_groups_without_text_between_them_stay_apart():
    plan = plan_positions(8, [VisualGroup(0, 2, 2, 0), VisualGroup(4, 2, 2, 4)])
    assert plan.positions[0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2]


@pytest.mark.parametrize("groups", [[VisualGroup(3, 2, 2, 0)], [VisualGroup(0, 2, 2, 0), VisualGroup(3, 1, 1, 4)]])
def test_groups_that_do_not_fit_are_refused(groups):
    with pytest.raises(TensorMismatchError):
        plan_positions(6, groups)


def test_frequencies_are_interleaved_by_axis():
    assert frequency_axes((24, 20, 20), 128).tolist() == [0, 1, 2] * 20 + [0] * 4
