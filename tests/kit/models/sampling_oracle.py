"""One row sampled by the plainest code there is: Python numbers, lists and sorting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.adjustments import MASKED
from stages.compute.sampling.candidates import NUM_SPARE
from stages.compute.sampling.sampler import LEAST_LOGPROB, uniform


def adjusted(logits: torch.Tensor, settings: SamplingSettings, history: Sequence[int], num_prompt: int) -> list[float]:
    scores = logits.float().clone()
    for token_id, bias in settings.logit_bias.items():
        scores[token_id] += bias
    for token_id in set(history):
        score, scale = scores[token_id], settings.repetition_penalty
        scores[token_id] = score * scale if score < 0 else score / scale
    for token_id, count in Counter(history[num_prompt:]).items():
        counted = torch.tensor(float(count)) * settings.frequency_penalty + settings.presence_penalty
        scores[token_id] -= counted
    for token_id in masked(settings, history, num_prompt):
        scores[token_id] = MASKED
    return scores.tolist()


def masked(settings: SamplingSettings, history: Sequence[int], num_prompt: int) -> Iterator[int]:
    """Yield what may not come next: by looking at everything that there is, every time."""
    output = list(history[num_prompt:])
    if len(output) < settings.min_tokens:
        yield from settings.end_token_ids
    for word in settings.bad_word_ids:
        if ends_with(output, word[:-1]):
            yield word[-1]
    if size := settings.no_repeat_ngram_size:
        for start in range(len(history) - size + 1):
            ngram = history[start : start + size]
            if ends_with(history, ngram[:-1]):
                yield ngram[-1]


def ends_with(tokens: Sequence[int], end: Sequence[int]) -> bool:
    return len(end) <= len(tokens) and list(tokens[len(tokens) - len(end) :]) == list(end)


def ranked(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda token_id: (-scores[token_id], token_id))


def kept(scores: Sequence[float], settings: SamplingSettings) -> tuple[list[int], list[float]]:
    """Return the tokens that the filters leave and their relative probabilities."""
    order = ranked(scores)
    if 0 < settings.top_k < len(order):
        last = scores[order[settings.top_k - 1]]
        order = [token_id for token_id in order if scores[token_id] >= last][: settings.top_k + NUM_SPARE]
    relative = [math.exp((scores[token_id] - scores[order[0]]) / settings.temperature) for token_id in order]
    total, before, left = math.fsum(relative), 0.0, 0
    for share in relative:
        if share < settings.min_p or not before < settings.top_p * total:
            break
        before, left = before + share, left + 1
    return order[:left], relative[:left]


def choice(scores: Sequence[float], settings: SamplingSettings, position: int) -> int:
    if settings.temperature == 0:
        return ranked(scores)[0]
    order, relative = kept(scores, settings)
    cumulative = list(accumulate(relative))
    target = uniform(settings.seed, position) * cumulative[-1]
    return next((token for token, mass in zip(order, cumulative, strict=True) if mass > target), order[-1])


def logprobs(scores: Sequence[float]) -> list[float]:
    highest = max(scores)
    log_sum = highest + math.log(math.fsum(math.exp(score - highest) for score in scores))
    return [max(score - log_sum, LEAST_LOGPROB) for score in scores]
