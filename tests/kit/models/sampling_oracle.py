"""One row sampled by the plainest code there is: Python numbers, lists and sorting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import torch

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.candidates import NUM_SPARE
from stages.compute.sampling.sampler import uniform


def penalised(logits: torch.Tensor, settings: SamplingSettings, history: Sequence[int], num_prompt: int) -> list[float]:
    scores = logits.float().clone()
    for token_id in set(history):
        score, scale = scores[token_id], settings.repetition_penalty
        scores[token_id] = score * scale if score < 0 else score / scale
    for token_id, count in Counter(history[num_prompt:]).items():
        counted = torch.tensor(float(count)) * settings.frequency_penalty + settings.presence_penalty
        scores[token_id] -= counted
    return scores.tolist()


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
    return [score - log_sum for score in scores]
