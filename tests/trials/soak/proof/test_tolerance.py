"""Unambiguous choices stand against every error within the tolerance; choices at an edge are not called unambiguous."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.sampler import Choice, SessionSampler, uniform
from tests.kit.models.samplers import sample
from trials.soak.proof.tolerance import is_unambiguous

TOLERANCE = 1e-3
POSITION = 3


def sampler(**settings: Any) -> SessionSampler:
    return SessionSampler(SamplingSettings(**settings), (1, 2, 3), 2)


def chosen(logits: torch.Tensor, settings: dict[str, Any]) -> list[int]:
    """One token for each row of `[r, V]`, all with the same settings."""
    outcomes = sample(logits, [sampler(**settings) for _ in logits], [POSITION] * len(logits))
    assert all(isinstance(outcome, Choice) for outcome in outcomes)
    return [outcome.token_id for outcome in outcomes if isinstance(outcome, Choice)]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.8},
        {"temperature": 0.8, "top_k": 8},
        {"temperature": 1.1, "top_p": 0.7},
        {"temperature": 1.1, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
    ],
    ids=str,
)
def test_an_unambiguous_choice_stays_under_errors_within_the_tolerance(settings: dict[str, Any]) -> None:
    chance = torch.Generator().manual_seed(0)
    num_certain = num_moved = 0
    for seed in range(300):
        seeded = settings | {"seed": seed}
        logits = 2 * torch.randn(40, generator=chance)
        unambiguous = is_unambiguous(logits, sampler(**seeded), POSITION, TOLERANCE)
        noise = TOLERANCE * (2 * torch.rand(24, 40, generator=chance) - 1) / 1.5  # a penalty scales the error as well
        moved = len(set(chosen(torch.cat((logits[None], logits + noise)), seeded))) > 1
        assert not (unambiguous and moved)
        num_certain, num_moved = num_certain + unambiguous, num_moved + moved
    assert num_certain > 200
    assert num_certain + num_moved <= 300


def test_two_equal_candidates_are_an_ambiguous_greedy_choice() -> None:
    assert not is_unambiguous(torch.tensor([0.0, 3.0, 3.0, 1.0]), sampler(), POSITION, TOLERANCE)
    assert is_unambiguous(torch.tensor([0.0, 3.0, 2.9, 1.0]), sampler(), POSITION, TOLERANCE)


def test_a_number_drawn_at_the_edge_of_a_share_is_ambiguous() -> None:
    seed = next(seed for seed in range(100) if 0.6 < uniform(seed, POSITION) < 0.9)
    drawn = uniform(seed, POSITION)
    settings: dict[str, Any] = {"temperature": 1.0, "seed": seed}
    assert not is_unambiguous(torch.tensor([drawn, 1 - drawn]).log(), sampler(**settings), POSITION, TOLERANCE)
    assert is_unambiguous(torch.tensor([drawn - 0.01, 1.01 - drawn]).log(), sampler(**settings), POSITION, TOLERANCE)


def test_a_cut_between_equals_is_ambiguous() -> None:
    logits = torch.tensor([5.0, 2.0, 2.0, 0.0])
    assert not is_unambiguous(logits, sampler(temperature=1.0, top_k=2), POSITION, TOLERANCE)
    assert is_unambiguous(torch.tensor([9.0, 2.0, 1.0, 0.0]), sampler(temperature=1.0, top_k=2), POSITION, TOLERANCE)
