"""From what a user asked for to what a stage obeys: every open field takes the model's default."""

from __future__ import annotations

import hashlib
from typing import TypeVar

from broker_pipeline.messages.sampling import SamplingParams, SamplingSettings
from broker_pipeline.model_facts import GenerationDefaults

T = TypeVar("T")


def resolve_sampling(params: SamplingParams, defaults: GenerationDefaults, job_id: str) -> SamplingSettings:
    """Decide every sampling field. Without `do_sample` in the model's defaults, the default is greedy.

    The seed defaults to a hash of the job's id, so that a job which runs again gives the same tokens.
    """
    usual_temperature = _first(defaults.temperature, 1.0) if defaults.do_sample else 0.0
    return SamplingSettings(
        temperature=_first(params.temperature, usual_temperature),
        top_k=_first(params.top_k, defaults.top_k, 0),
        top_p=_first(params.top_p, defaults.top_p, 1.0),
        min_p=_first(params.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(params.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=_first(params.presence_penalty, 0.0),
        frequency_penalty=_first(params.frequency_penalty, 0.0),
        seed=_first(params.seed, seed_of(job_id)),
        logprobs=params.logprobs,
    )


def seed_of(job_id: str) -> int:
    """Return a job's own seed: 64 bits, signed, of the SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8], "little", signed=True)


def _first(*candidates: T | None) -> T:
    return next(candidate for candidate in candidates if candidate is not None)
