"""The sampler's distributions against transformers' logits processors, applied in the order of `generate`."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.adjustments import MASKED
from stages.compute.sampling.sampler import SessionSampler, adjusted
from tests.kit.models.samplers import candidates

VOCAB = 500


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def reference_probabilities(logits: torch.Tensor, settings: SamplingSettings, history: list[int]) -> torch.Tensor:
    ids, scores = torch.tensor([history]), logits[None].clone()
    processors = [
        RepetitionPenaltyLogitsProcessor(settings.repetition_penalty),
        TemperatureLogitsWarper(settings.temperature),
        *([TopKLogitsWarper(settings.top_k)] if settings.top_k else []),
        *([TopPLogitsWarper(settings.top_p)] if settings.top_p < 1 else []),
        *([MinPLogitsWarper(settings.min_p)] if settings.min_p else []),
    ]
    for process in processors:
        scores = process(ids, scores)
    return scores[0].double().softmax(dim=-1)


def our_probabilities(logits: torch.Tensor, settings: SamplingSettings, history: list[int]) -> torch.Tensor:
    sampler = SessionSampler(settings, history, num_prompt_tokens=3)
    ids, probabilities = candidates(adjusted(logits, sampler, len(history)), settings)
    spread = torch.zeros(VOCAB, dtype=torch.float64)
    spread[ids] = probabilities / probabilities.sum()
    return spread


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "penalty"),
    list(product([0.3, 1.0, 1.7], [0, 1, 20, 1000], [0.1, 0.8, 1.0], [0.0, 0.05], [1.0, 1.3])),
)
def test_filtered_distributions_are_those_of_transformers(seed, temperature, top_k, top_p, min_p, penalty):
    settings = SamplingSettings(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    history = [3, 3, 7, 9, 11, 400]
    logits = logits_of(seed)
    expected = reference_probabilities(logits, settings, history)
    torch.testing.assert_close(our_probabilities(logits, settings, history), expected, rtol=1e-5, atol=1e-8)


def test_tokens_that_tie_with_the_last_of_the_top_k_stay():
    logits = torch.tensor([1.0, 2.0, 1.0, 0.0] + [-5.0] * (VOCAB - 4))
    settings = SamplingSettings(temperature=1.0, top_k=2)
    expected = reference_probabilities(logits, settings, [0])
    assert torch.count_nonzero(expected) == 3
    torch.testing.assert_close(our_probabilities(logits, settings, []), expected, rtol=1e-5, atol=1e-8)


NUM_PROMPT = 4
HISTORIES = [[3, 3, 7, 9], [3, 3, 7, 9, 11], [3, 3, 7, 9, 11, 3, 3], [5, 6, 5, 6, 5, 6, 5], [8] * 9]


@pytest.mark.parametrize("history", HISTORIES, ids=str)
@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({"no_repeat_ngram_size": 1}, NoRepeatNGramLogitsProcessor(1)),
        ({"no_repeat_ngram_size": 2}, NoRepeatNGramLogitsProcessor(2)),
        ({"no_repeat_ngram_size": 3}, NoRepeatNGramLogitsProcessor(3)),
        (
            {"min_tokens": 3, "end_token_ids": (2, 9)},
            MinNewTokensLengthLogitsProcessor(NUM_PROMPT, 3, [2, 9]),
        ),
        (
            {"bad_word_ids": ((6,), (11, 3), (3, 3, 7), (8, 8))},
            NoBadWordsLogitsProcessor([[6], [11, 3], [3, 3, 7], [8, 8]]),
        ),
        ({"logit_bias": {4: 1.5, 9: -3.0}}, SequenceBiasLogitsProcessor([[[4], 1.5], [[9], -3.0]])),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, LogitsProcessor) else str(value),
)
def test_adjusted_logits_are_those_of_transformers(
    settings: dict[str, object], processor: LogitsProcessor, history: list[int]
) -> None:
    """Bad words are looked for in the output alone, as vLLM does; transformers looks at the prompt too."""
    seen = history[NUM_PROMPT:] if "bad_word_ids" in settings else history
    logits = logits_of(len(history))
    expected = processor(torch.tensor([seen], dtype=torch.long), logits[None].clone())[0]
    sampler = SessionSampler(SamplingSettings(**settings), history, NUM_PROMPT)  # type: ignore[arg-type]
    found = adjusted(logits, sampler, len(history))
    assert torch.equal(found.where(found > MASKED, -torch.inf), expected)
