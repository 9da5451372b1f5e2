"""The sampler: reproducible draws, penalties, log-probabilities, rows that cannot be sampled."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.errors import KVPositionError, NonFiniteLogitsError, NothingLeftError
from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.sampler import LEAST_LOGPROB, Choice, SessionSampler, adjusted, uniform
from tests.kit.models.samplers import candidates, sample

VOCAB = 100


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def sampler(history: tuple[int, ...] = (), num_prompt_tokens: int = 0, **settings) -> SessionSampler:
    return SessionSampler(SamplingSettings(**settings), history, num_prompt_tokens)


def test_uniform_numbers_are_fixed_for_all_time():
    """Sessions must resume on other versions and devices, so the numbers are part of the contract."""
    assert uniform(0, 0) == 0.6524484863740322
    assert uniform(0, 1) == 0.7012121095215252
    assert uniform(1, 0) == 0.36818951565166946
    assert uniform(-1, 2**40) == 0.5440041384053076


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_uniform_numbers_stay_in_range(seed, position):
    assert 0 <= uniform(seed, position) < 1


def test_uniform_numbers_are_spread_evenly_over_seeds_and_positions():
    for numbers in ([uniform(7, p) for p in range(20_000)], [uniform(s, 5) for s in range(20_000)]):
        counts = torch.histc(torch.tensor(numbers), bins=20, min=0, max=1)
        chi_squared = float(((counts - 1000) ** 2 / 1000).sum())
        assert chi_squared < 43.8  # 19 degrees of freedom, one in a thousand


def test_greedy_takes_the_most_likely_token():
    logits = logits_of(3)
    found = sample(logits, [sampler() for _ in range(3)], [5, 6, 7])
    assert found == [Choice(token) for token in logits.argmax(-1).tolist()]


def test_draws_follow_the_filtered_distribution():
    logits = logits_of(1)
    settings = SamplingSettings(temperature=0.9, top_k=12, top_p=0.9)
    ids, probabilities = candidates(logits[0], settings)
    expected = torch.zeros(VOCAB, dtype=torch.float64)
    expected[ids] = probabilities / probabilities.sum()
    drawn = [sample(logits, [SessionSampler(settings)], [position])[0].token_id for position in range(4000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCAB)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    chi_squared = float(((counts - 4000 * expected)[kept] ** 2 / (4000 * expected[kept])).sum())
    assert chi_squared < 2.5 * int(kept.sum())


@pytest.mark.parametrize("others", [0, 1, 9])
def test_a_draw_depends_on_neither_batch_nor_place(others):
    logits = logits_of(1, seed=3)
    mine = {"temperature": 1.0, "top_p": 0.95, "seed": 42, "logprobs": 4}
    alone = sample(logits, [sampler(**mine)], [17])[0]
    batch = torch.cat((logits_of(others, seed=4), logits))
    crowd = [sampler(temperature=0.5, seed=i) for i in range(others)]
    assert sample(batch, [*crowd, sampler(**mine)], [*range(others), 17])[-1] == alone


def test_other_seeds_and_positions_draw_other_tokens():
    logits = torch.zeros(1, VOCAB)
    logits[0, -1] = -1.0
    by_seed = {sample(logits, [sampler(temperature=1.0, seed=s)], [0])[0].token_id for s in range(50)}
    by_position = {sample(logits, [sampler(temperature=1.0)], [p])[0].token_id for p in range(50)}
    assert len(by_seed) > 25
    assert len(by_position) > 25


def test_repetition_counts_prompt_and_output_frequency_and_presence_only_output():
    logits = torch.tensor([2.0, -2.0, 3.0, 1.0, 0.0])
    session = sampler((0, 1, 2, 2, 2), 2, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.1)
    assert adjusted(logits, session, 5).tolist() == pytest.approx([1.0, -4.0, 1.5 - 0.8, 1.0, 0.0])
    assert logits.tolist() == [2.0, -2.0, 3.0, 1.0, 0.0]


def test_biases_are_added_before_penalties():
    session = sampler((0, 1), 2, repetition_penalty=2.0, logit_bias={1: 3.0, 2: -1.0})
    assert adjusted(torch.tensor([2.0, -2.0, 3.0]), session, 2).tolist() == [1.0, 0.5, 2.0]


def test_no_end_is_sampled_before_the_output_is_long_enough():
    logits, session = torch.tensor([[3.0, 2.0, 1.0, 0.0]]), sampler(min_tokens=2, end_token_ids=(0, 1))
    assert [sample(logits, [session], [position])[0].token_id for position in range(4)] == [2, 2, 0, 0]


def test_a_bad_word_is_never_completed():
    logits, session = (
        torch.tensor([[3.0, 2.0, 1.0, 0.0]]),
        sampler((2,), 1, bad_word_ids=((0,), (1, 1), (2, 1), (1, 2, 1))),
    )
    found = [sample(logits, [session], [position])[0].token_id for position in range(1, 6)]
    assert found == [1, 2, 2, 2, 2], "2 1 is allowed behind the 2 of the prompt, and nowhere else"


def test_no_ngram_comes_twice_the_prompt_included():
    logits, session = torch.tensor([[3.0, 2.0, 1.0]]), sampler((1, 0, 0), 3, no_repeat_ngram_size=2)
    found = [sample(logits, [session], [position])[0].token_id for position in range(3, 7)]
    assert found == [1, 1, 2, 0]


def test_masked_tokens_have_the_least_logprob_there_is():
    [choice] = sample(torch.tensor([[0.0, 1.0, 1.0, -3.0]]), [sampler(bad_word_ids=((0,), (3,)), logprobs=4)], [0])
    assert choice.logprob == pytest.approx(math.log(0.5))
    assert [(top.token_id, top.logprob) for top in choice.top[2:]] == [(0, LEAST_LOGPROB), (3, LEAST_LOGPROB)]


def test_a_session_whose_every_token_is_ruled_out_fails_alone():
    words = tuple((token_id,) for token_id in range(VOCAB))
    for temperature in (0.0, 1.0):
        sessions = [sampler(temperature=temperature), sampler(temperature=temperature, bad_word_ids=words)]
        fine, failed = sample(logits_of(2), sessions, [0, 0])
        assert isinstance(fine, Choice)
        assert isinstance(failed, NothingLeftError)
        assert not failed.retryable


def test_sampled_tokens_join_the_history():
    logits = torch.zeros(1, VOCAB)
    logits[0, 9] = 1.0
    session = sampler((1, 2, 3), 3, presence_penalty=2.0)
    assert sample(logits, [session], [3])[0].token_id == 9
    assert sample(logits, [session], [4])[0].token_id != 9


@pytest.mark.parametrize(
    "extra",
    [
        {"frequency_penalty": 0.7, "repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 3, "temperature": 0.3},
        {"min_tokens": 9, "end_token_ids": tuple(range(50)), "logit_bias": {8: 3.0}},
        {"bad_word_ids": tuple((first, second) for first in range(VOCAB) for second in range(50))},
    ],
    ids=str,
)
def test_a_resumed_session_samples_like_the_undisturbed_one(extra):
    settings = {"temperature": 1.2, "seed": 5, "logprobs": 2} | extra
    whole = sampler((4, 5, 6), 3, **settings)
    tokens = [sample(logits_of(1, position), [whole], [position])[0] for position in range(3, 20)]
    for stop in (3, 4, 11, 19):
        generated = tuple(token.token_id for token in tokens[: stop - 3])
        resumed = sampler((4, 5, 6, *generated), 3, **settings)
        again = [sample(logits_of(1, p), [resumed], [p])[0] for p in range(stop, 20)]
        assert again == tokens[stop - 3 :]


def test_an_incomplete_history_is_refused_for_that_session_only():
    logits = logits_of(2)
    short, fine = sampler((1, 2), 2, presence_penalty=1.0), sampler()
    failed, chosen = sample(logits, [short, fine], [5, 5])
    assert isinstance(failed, KVPositionError)
    assert isinstance(chosen, Choice)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad, temperature):
    logits = logits_of(3)
    expected = sample(logits, [sampler(temperature=temperature) for _ in range(3)], [1, 1, 1])
    logits[1, 50] = bad
    found = sample(logits, [sampler(temperature=temperature) for _ in range(3)], [1, 1, 1])
    assert isinstance(found[1], NonFiniteLogitsError)
    assert [found[0], found[2]] == [expected[0], expected[2]]


def test_log_probabilities_are_those_before_temperature_and_filters():
    logits = logits_of(1)
    [choice] = sample(logits, [sampler(temperature=0.3, top_k=5, logprobs=3)], [0])
    expected = logits[0].log_softmax(-1)
    assert choice.logprob == pytest.approx(float(expected[choice.token_id]))
    assert [top.token_id for top in choice.top] == expected.topk(3).indices.tolist()
    assert [top.logprob for top in choice.top] == pytest.approx(expected.topk(3).values.tolist())


def test_log_probabilities_are_given_only_when_asked_for():
    logits = logits_of(2)
    none, chosen_only = sample(logits, [sampler(), sampler(logprobs=0)], [0, 0])
    assert none.logprob is None
    assert chosen_only.logprob is not None
    assert chosen_only.top == ()


def test_more_alternatives_than_tokens_are_fine():
    [choice] = sample(torch.tensor([[0.0, 0.0, 1.0]]), [sampler(temperature=1.0, top_k=50, logprobs=20)], [0])
    assert len(choice.top) == 3


@pytest.mark.parametrize("temperature", [1e-9, 2.0])
def test_extreme_temperatures_still_draw(temperature):
    logits = logits_of(1) * 100
    [choice] = sample(logits, [sampler(temperature=temperature, min_p=1.0)], [0])
    assert choice.token_id == int(logits.argmax())
