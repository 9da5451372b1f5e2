"""The draw from all tokens by histograms against the one by sorting."""

from __future__ import annotations

import math

import pytest
import torch

from broker_pipeline.errors import NonFiniteLogitsError
from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.candidates import DrawSettings, draw, rank_all
from stages.compute.sampling.plan import MAX_SORTED_VOCAB
from stages.compute.sampling.sampler import Choice, SessionSampler
from stages.compute.sampling.whole_vocabulary import Cuts, Slots, draw_whole
from tests.kit.models import sampling_oracle as oracle
from tests.kit.models.samplers import sample

ALL_CUTS = Cuts(top_k=True, top_p=True, min_p=True)
SHORT, LONG = 300, MAX_SORTED_VOCAB + 77


def logits_of(num_rows: int, vocab: int, seed: int, step: float = 0.0) -> torch.Tensor:
    logits = 3 * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed))
    return (logits / step).round() * step if step else logits


def settings_of(num_rows: int, vocab: int, seed: int) -> DrawSettings:
    """Each cut is left out of about every third row."""
    chance = torch.Generator().manual_seed(seed)

    def numbers(low: float, high: float, without: float) -> torch.Tensor:
        drawn = low + (high - low) * torch.rand(num_rows, generator=chance, dtype=torch.float64)
        return drawn.where(torch.rand(num_rows, generator=chance) > 0.3, without)

    top_k = numbers(1, vocab, vocab).floor()
    table = (numbers(0.2, 2, 1.0), top_k - 1, numbers(0.05, 1, 1.0), numbers(0, 0.3, 0.0), numbers(0, 1, 0.5))
    return DrawSettings.of_table(torch.stack((torch.arange(num_rows).double(), *table)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("vocab", "step"), [(1, 0.0), (2, 0.0), (SHORT, 0.0), (SHORT, 1.0), (SHORT, 20.0), (LONG, 0.0)]
)
def test_histograms_draw_what_sorting_draws(vocab, step, dtype):
    for seed in range(3):
        logits, settings = logits_of(60, vocab, seed, step).to(dtype), settings_of(60, vocab, seed)
        expected = draw(rank_all(logits), settings, vocab)
        assert torch.equal(draw_whole(logits, settings, ALL_CUTS), expected)


@pytest.mark.parametrize("without", ["top_k", "top_p", "min_p"])
def test_cuts_that_no_row_asks_for_change_nothing(without):
    logits, settings = logits_of(60, SHORT, 1), settings_of(60, SHORT, 1)
    neutral = {"top_k": ("last", SHORT - 1), "top_p": ("top_p", 1.0), "min_p": ("min_p", 0.0)}
    name, value = neutral[without]
    getattr(settings, name).fill_(value)
    some = Cuts(**{cut: cut != without for cut in neutral})
    assert torch.equal(draw_whole(logits, settings, some), draw_whole(logits, settings, ALL_CUTS))


def test_zeros_of_both_signs_are_equal():
    logits = torch.zeros(50, SHORT)
    logits[:, ::2] = -0.0
    settings = settings_of(50, SHORT, 2)
    assert torch.equal(draw_whole(logits, settings, ALL_CUTS), draw_whole(logits.abs(), settings, ALL_CUTS))


def test_top_p_leaves_out_a_token_that_begins_where_it_ends():
    logits = torch.full((40, LONG), -1e4)
    logits[:, [70, 9000]] = 0.0
    rows = [SamplingSettings(temperature=1.0, top_p=0.5, seed=seed) for seed in range(40)]
    assert sample(logits, [SessionSampler(row) for row in rows], [0] * 40) == [Choice(70)] * 40


def test_amounts_of_ties_may_differ_by_rounding():
    slots = Slots.of(torch.tensor([[1.0, 2.0, 2.0, 0.0]]))
    amounts = torch.tensor([[3, 5, 6, 1]])
    targets = [(target, slots.find(amounts, torch.tensor([[target]]))) for target in range(15)]
    assert [int(slots.ids(found)) for _, found in targets] == [1] * 5 + [2] * 6 + [0] * 3 + [3]


def test_ties_beyond_the_top_k_are_bounded():
    settings = [SamplingSettings(temperature=1.0, top_k=400, seed=seed) for seed in range(400)]
    logits = torch.zeros(400, LONG)
    logits[:, -1] = -1.0
    found = sample(logits, [SessionSampler(row) for row in settings], [0] * 400)
    tokens = {choice.token_id for choice in found if isinstance(choice, Choice)}
    assert 400 < max(tokens) < 464


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"top_p": 0.9},
        {"top_k": 1000},
        {"min_p": 0.01},
        {"presence_penalty": 1.0},
        {"no_repeat_ngram_size": 1, "top_p": 0.9},
        {"logit_bias": dict.fromkeys(range(0, 400, 7), 5.0), "bad_word_ids": ((7,), (14,))},
    ],
    ids=str,
)
def test_long_rows_are_what_the_plainest_code_chooses(kind):
    rows = [SamplingSettings(temperature=1.0, seed=seed, **kind) for seed in range(10)]
    history = tuple(range(0, LONG, 50))
    logits = logits_of(10, LONG, 3)
    found = sample(logits, [SessionSampler(row, history, 9) for row in rows], [len(history)] * 10)
    for outcome, row_logits, settings in zip(found, logits, rows, strict=True):
        scores = oracle.adjusted(row_logits, settings, history, 9)
        assert outcome == Choice(oracle.choice(scores, settings, len(history)))


@pytest.mark.parametrize("kind", [{}, {"top_k": 1000}, {"top_k": 20}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("num_left", [1, 5, 300])
def test_masks_may_leave_fewer_tokens_than_the_filters_would(kind, num_left):
    rows = [SamplingSettings(temperature=2.0, seed=seed, no_repeat_ngram_size=1, **kind) for seed in range(20)]
    history = range(num_left, LONG)
    found = sample(logits_of(20, LONG, 3), [SessionSampler(row, history, 9) for row in rows], [len(history)] * 20)
    tokens = {choice.token_id for choice in found if isinstance(choice, Choice)}
    assert len(found) == 20
    assert max(tokens) < num_left
    assert len(tokens) > 1 or num_left == 1


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("num_bad", [1, LONG])
def test_long_rows_that_are_not_finite_fail_alone(bad, num_bad):
    settings = {"temperature": 1.0, "top_p": 0.9, "top_k": 5000, "min_p": 0.01, "logprobs": 2}
    rows = [SamplingSettings(seed=seed, **settings) for seed in range(3)]
    logits = logits_of(3, LONG, 4)
    expected = sample(logits, [SessionSampler(row) for row in rows], [0] * 3)
    logits[1, :num_bad] = bad
    found = sample(logits, [SessionSampler(row) for row in rows], [0] * 3)
    assert isinstance(found[1], NonFiniteLogitsError)
    assert [found[0], found[2]] == [expected[0], expected[2]]
