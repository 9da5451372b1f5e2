"""Ranking without sorting, shares in whole numbers, and what is kept of them."""

from __future__ import annotations

import math

import pytest
import torch

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.candidates import NUM_SPARE, rank_all, rank_best
from stages.compute.sampling.logit_scan import CONSTANT, NOT_FINITE, scan_logits
from tests.kit.models.samplers import candidates


def logits_of(num_rows: int, vocab: int, seed: int, step: float = 0.0) -> torch.Tensor:
    logits = 3 * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed))
    return (logits / step).round() * step if step else logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000, 4096])
@pytest.mark.parametrize("width", [1, 20, 84, 320])
def test_the_best_are_the_beginning_of_all(width, vocab, step, dtype):
    logits = logits_of(8, vocab, width, step).to(dtype)
    best, ranked = rank_best(logits, width), rank_all(logits)
    assert torch.equal(best.ids, ranked.ids[:, :width])
    assert torch.equal(best.scores, ranked.scores[:, :width])


def test_equal_scores_rank_by_id_even_in_other_groups_and_with_other_signs_of_zero():
    logits = torch.full((1, 300), -1.0)
    logits[0, [7, 130, 131, 299]] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    assert rank_best(logits, 6).ids.tolist() == [[7, 130, 131, 299, 0, 1]]
    assert rank_all(logits).ids[0, :6].tolist() == [7, 130, 131, 299, 0, 1]


@pytest.mark.parametrize("top_k", [2, 20, 256, 300])
def test_tokens_that_tie_with_the_last_of_the_top_k_stay_up_to_a_bound(top_k):
    ids, probabilities = candidates(torch.zeros(2000), SamplingSettings(temperature=1.0, top_k=top_k))
    assert ids.tolist() == list(range(top_k + NUM_SPARE))
    assert probabilities.tolist() == pytest.approx([1 / (top_k + NUM_SPARE)] * (top_k + NUM_SPARE))


def test_min_p_of_one_keeps_all_that_tie_with_the_best():
    logits = torch.tensor([1.0, 3.0, 2.999, 3.0])
    ids, _ = candidates(logits, SamplingSettings(temperature=0.5, min_p=1.0))
    assert ids.tolist() == [1, 3]


@pytest.mark.parametrize("top_k", [0, 3])
def test_the_smallest_top_p_keeps_the_best(top_k):
    settings = SamplingSettings(temperature=2.0, top_p=5e-324, top_k=top_k)
    assert candidates(torch.zeros(50), settings)[0].tolist() == [0]


def test_top_p_keeps_the_token_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, num_kept in ((0.4, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)):
        assert len(candidates(logits, SamplingSettings(temperature=1.0, top_p=top_p))[0]) == num_kept


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-9])
def test_the_smallest_temperatures_leave_the_best_alone(temperature):
    logits = torch.tensor([1.0, 3e38, -3e38, 2.0])
    assert candidates(logits, SamplingSettings(temperature=temperature))[0].tolist() == [1]


def test_probabilities_are_those_of_softmax():
    logits = logits_of(1, 500, 0)[0]
    ids, probabilities = candidates(logits, SamplingSettings(temperature=0.8))
    torch.testing.assert_close(probabilities, (logits.double() / 0.8).softmax(-1)[ids], rtol=1e-12, atol=1e-14)


# --- the scan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [0.0, 4.0])
def test_the_scan_finds_the_lowest_id_of_the_largest_logit(step, dtype):
    logits = logits_of(40, 1003, 5, step).to(dtype)
    scan = scan_logits(logits)
    expected = [row.index(max(row)) for row in logits.float().tolist()]
    assert scan.greedy.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 500, 1002])
def test_the_scan_tells_which_rows_are_not_finite(place, bad, dtype):
    logits = logits_of(5, 1003, 6).to(dtype)
    logits[3, place] = bad
    marks = scan_logits(logits).greedy
    assert marks[3] == NOT_FINITE
    assert (marks[[0, 1, 2, 4]] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [0.0, -0.0, 7.5, -3e38])
def test_the_scan_tells_which_rows_are_all_one_number(number, dtype):
    logits = logits_of(4, 1003, 6).to(dtype)
    logits[1] = number
    logits[2] = number
    logits[2, 1002] += 1.0 if abs(number) < 10 else -number
    marks = scan_logits(logits).greedy
    assert marks[1] == CONSTANT
    assert marks[2] == 1002
